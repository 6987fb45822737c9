"""The training service: jobs, the processes that work on them, and what they are made of."""
