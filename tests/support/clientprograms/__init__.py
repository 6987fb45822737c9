"""Programs that use a server as its users do, in environments of their own clients."""
