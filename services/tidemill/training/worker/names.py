"""Names of what an exported model takes and gives, and of files that outlive a worker."""

INPUT = "x"
"""Raw samples, a batch of any size."""
OUTPUT = "y"
"""Probabilities of the classes, in order of the labels."""
KEPT = "kept-"
"""How the names of files begin that a job's workers leave in its directory for their successors."""
