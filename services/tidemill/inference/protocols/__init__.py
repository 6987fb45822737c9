"""Front doors over the same models: each turns a wire contract into requests to the engine."""
