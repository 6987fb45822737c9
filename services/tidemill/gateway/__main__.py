"""Runs the gateway: `python -m tidemill.gateway`."""

import sys

from tidemill import config
from tidemill.gateway.app import build
from tidemill.gateway.config import GatewayConfig
from tidemill.rpc import app


def main() -> int:
    """The exit status of the process."""
    settings = config.load(GatewayConfig, "GATEWAY")
    return app.run("gateway", settings, lambda: build(settings))


if __name__ == "__main__":
    sys.exit(main())
