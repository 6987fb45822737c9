"""Workers that are slow at random, on a real shard."""
