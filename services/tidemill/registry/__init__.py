"""The registry service: models, versions, aliases, live instances, and the log of every change."""
