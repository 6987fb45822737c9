"""Schedules of the learning rate, one a file."""
