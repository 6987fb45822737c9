"""Schedules of the learning rate that a group of parameters can have, one a file."""
