"""Optimizers that a group of parameters can have, one a file."""
