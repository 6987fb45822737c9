"""Ways in which the requests for a model reach its runtime."""
