"""Models that a job can train, one a file."""
