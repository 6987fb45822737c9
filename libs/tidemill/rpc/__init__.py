"""gRPC servers and callers as every service of the platform uses them."""
