"""Runs the training service."""

import sys

from tidemill import config
from tidemill.rpc import app
from tidemill.training.app import build
from tidemill.training.config import TrainingConfig


def main() -> int:
    """Run until SIGTERM or SIGINT; the exit status."""
    settings = config.load(TrainingConfig, "TRAINING")
    return app.run("training", settings, lambda: build(settings))


if __name__ == "__main__":
    sys.exit(main())
