"""Ways in which workers combine their work, one a file."""
