"""Runs one worker process: `python -m tidemill.training.worker`."""

import sys

from tidemill import config
from tidemill.rpc.allocator import keep_all
from tidemill.training.worker.config import WorkerConfig
from tidemill.training.worker.process import run


def main() -> int:
    """Read the settings and work; the exit status."""
    keep_all()
    return run(config.load(WorkerConfig, "WORKER", program="python -m tidemill.training.worker"))


if __name__ == "__main__":
    sys.exit(main())
