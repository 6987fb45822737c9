"""A line of limited rate: a TCP proxy with a token bucket in each direction."""
