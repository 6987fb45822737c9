"""Typed asynchronous clients of the services: what users of the platform import."""
