"""Runtimes, one a file: each runs models of the format that its file is named after."""
