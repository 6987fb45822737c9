"""Runs the registry service."""

import sys

from tidemill import config
from tidemill.registry.app import build
from tidemill.registry.config import RegistryConfig
from tidemill.rpc import app


def main() -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    settings = config.load(RegistryConfig, "REGISTRY")
    return app.run("registry", settings, lambda: build(settings))


if __name__ == "__main__":
    sys.exit(main())
