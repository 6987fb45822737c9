"""A directory in the layout of Triton's model repositories as a source of versions."""
