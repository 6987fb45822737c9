"""What the benchmarks of the parameter server share: pinned threads, real shards, promises, and figures as JSON."""
