"""On what figures were measured, and where they are kept."""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scripts.benchmarks.measuring.pinning import ALLOCATOR, ROOT

CACHE = ROOT / ".cache" / "bench"


def common(parser: argparse.ArgumentParser) -> None:
    """The options that all these benchmarks have."""
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of each process's numeric libraries")
    parser.add_argument("--json", type=Path, help="write the figures there, and a plot beside them where there is one")


def parsed(parser: argparse.ArgumentParser, name: str) -> argparse.Namespace:
    """What is asked for, with a place for the figures in any case."""
    options = parser.parse_args()
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads must be at least 1")
    options.json = options.json or CACHE / f"{name}-{commit()[:12]}.json"
    options.json.parent.mkdir(parents=True, exist_ok=True)
    return options


def keep(options: argparse.Namespace, found: Mapping[str, Any]) -> None:
    """Write figures, with the circumstances before them."""
    options.json.write_text(json.dumps({**circumstances(options), **found}, indent=1))
    print(f"figures: {options.json}")


def circumstances(options: argparse.Namespace) -> dict[str, Any]:
    """On what, and of what, the figures are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpus = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "commit": commit(),
        "changed": bool(output("git", "status", "--porcelain", "--untracked-files=no")),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"cpu": cpus[:1], "cores": os.cpu_count(), "kernel": platform.release(), "load": os.getloadavg()},
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "grpcio", "protobuf", "numpy")},
        "allocator": ALLOCATOR,
        "options": {name: str(value) for name, value in vars(options).items() if name != "json"},
    }


def commit() -> str:
    """What is checked out."""
    return output("git", "rev-parse", "HEAD") or "unknown"


def output(*command: str) -> str:
    """What a command prints; nothing when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    return done.stdout.strip() if done.returncode == 0 else ""
