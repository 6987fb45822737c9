"""Servers that are measured beside ours: each has PACKAGES and `main(folder, port)`, in an environment of its own."""
