"""What of a group outlives the end of its shard; one plug-in a file."""
