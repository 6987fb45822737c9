"""How a block of float32 travels, one way a file."""
