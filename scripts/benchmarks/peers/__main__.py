"""Runs one peer: `python -m peers NAME FOLDER PORT`, with the folder above on the path."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    name, folder, port = sys.argv[1:]
    importlib.import_module(f"peers.{name}").main(Path(folder), int(port))
