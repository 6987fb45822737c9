"""Runs one shard of the parameter server."""

import sys

from tidemill import config
from tidemill.parameters.app import build
from tidemill.parameters.config import Config
from tidemill.rpc import allocator, app


def main() -> int:
    """Read the settings and serve until SIGTERM; the exit status."""
    allocator.keep_chunks()
    settings = config.load(Config, "PARAMETERS")
    return app.run("parameters", settings, lambda: build(settings))


if __name__ == "__main__":
    sys.exit(main())
