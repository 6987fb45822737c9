"""What the processes of one measurement are told, and how those that step talk with the benchmark."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One measurement of one system."""

    model: str
    workers: int
    warm: int
    """Steps that are not timed."""
    steps: int
    """Steps that are, of each worker."""
    threads: int
    """Threads of each process."""
    option: str
    """Which variant of the system."""
    ports: list[int]
    """Free ones."""
    folder: str
    """Where its files go."""

    @staticmethod
    def read(path: Path) -> "Job":
        """The job in a file."""
        return Job(**json.loads(path.read_text()))

    def write(self) -> Path:
        """The file it was written to."""
        path = Path(self.folder) / "job.json"
        path.write_text(json.dumps(asdict(self)))
        return path


def train(
    job: Job, step: Callable[[int], int], values: Callable[[], np.ndarray] | None, chief: bool, pack: int = 1
) -> None:
    """Make all steps: the warm-up, a halt in which the benchmark looks at the processes, and the timed ones.

    Args:
        job: how many.
        step: makes step i; gives the bytes of parameters, gradients and indices that this worker sent and received.
        values: the parameters, flat; the chief's are written to `values.npy` after the warm-up.
        chief: whether this is the first worker.
        pack: steps that one call of `step` makes.
    """
    halt("ready")
    for i in range(0, job.warm, pack):
        step(i)
    if chief and values is not None:
        np.save(Path(job.folder) / "values.npy", values())
    halt("warm")
    payload, times = 0, []
    for i in range(job.warm, job.warm + job.steps, pack):
        began = time.perf_counter()
        payload += step(i)
        times.append((time.perf_counter() - began) / pack)
    halt("done", times=times, payload=payload)


def halt(mark: str, **facts: object) -> None:
    """Tell the benchmark where this process is, and wait until it says to go on."""
    print("@" + json.dumps({"mark": mark, **facts}), flush=True)
    if not sys.stdin.readline():
        sys.exit("the benchmark has gone")
