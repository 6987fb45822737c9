"""Runs one process of one system: `python -m trainers SYSTEM ROLE INDEX JOB`, with the folder above on the path."""

import importlib
import sys
from pathlib import Path

from trainers.job import Job

if __name__ == "__main__":
    system, role, index, path = sys.argv[1:]
    importlib.import_module(f"trainers.{system}").main(role, int(index), Job.read(Path(path)))
