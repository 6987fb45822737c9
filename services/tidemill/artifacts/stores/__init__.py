"""Places that keep objects, one plug-in a file."""
