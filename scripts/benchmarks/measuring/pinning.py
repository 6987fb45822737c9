"""The same number of threads, and the same allocator, in every process of a benchmark."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
MARK = "TIDEMILL_BENCHMARK_PINNED"
LIBRARIES = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB")
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
"""Memory is kept, so that nothing pays for page faults in every step."""


def pin(threads: int) -> None:
    """Begin this program anew in an environment that pins it and its children, unless that was done.

    Args:
        threads: of each process's numeric libraries.
    """
    if os.environ.get(MARK) == str(threads):
        return
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | surroundings(threads))


def surroundings(threads: int) -> dict[str, str]:
    """The variables that pin."""
    return {
        **{f"{name}_NUM_THREADS": str(threads) for name in LIBRARIES},
        **ALLOCATOR,
        MARK: str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
    }
