"""The parameter server: one process is one shard."""
