"""Names of what an exported model takes and gives."""

INPUT = "x"
"""Raw samples, a batch of any size."""
OUTPUT = "y"
"""Probabilities of the classes, in order of the labels."""
