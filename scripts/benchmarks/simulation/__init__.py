"""Distributed training as discrete events: workers, shards, links and processors, and what all that costs."""
