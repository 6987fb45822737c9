"""The process that trains: one rank of one job."""
