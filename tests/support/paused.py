"""Stopping a process so that it does nothing more, as a machine that hangs would."""

import os
import signal
import time
from pathlib import Path


def pause(pid: int) -> None:
    """Stop all threads of a process; on return every one of them has stopped. SIGCONT lets it go on."""
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + 10
    while not all(_state(task) in "TtZX" for task in Path(f"/proc/{pid}/task").iterdir()):
        if time.monotonic() > deadline:
            raise AssertionError(f"process {pid} does not stop")
        os.sched_yield()


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # a thread that has ended
        return "X"
