"""The command line: the whole platform on one machine, and everything users do with it."""
