"""Runs the inference service."""

import sys

from tidemill import config
from tidemill.inference.app import build
from tidemill.inference.config import InferenceConfig
from tidemill.rpc import app


def main() -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    settings = config.load(InferenceConfig, "INFERENCE")
    return app.run("inference", settings, lambda: build(settings))


if __name__ == "__main__":
    sys.exit(main())
