"""`python -m tidemill.artifacts`: run the artifact service."""

import sys

from tidemill import config
from tidemill.artifacts.app import build
from tidemill.artifacts.config import ArtifactsConfig
from tidemill.rpc import app


def main() -> int:
    """The exit status of the process."""
    settings = config.load(ArtifactsConfig, "ARTIFACTS")
    return app.run("artifacts", settings, lambda: build(settings))


if __name__ == "__main__":
    sys.exit(main())
