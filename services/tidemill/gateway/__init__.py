"""The gateway: every service of the platform over HTTP and JSON."""
