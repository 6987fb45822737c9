"""What a job waits for, and who holds up the others."""
