"""How the pushes of workers become parameters: one way a file."""
