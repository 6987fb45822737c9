"""The processes of one measurement: started, followed, looked at in /proc, and ended."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainers.job import Job

PATIENCE = 600.0
"""Seconds in which all workers must get to the next halt."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 31)}
"""For all processes: memory is kept, so that no system pays for page faults in every step."""


class Broken(Exception):
    """A system that did not get through its steps."""


class Wrong(Exception):
    """A system whose parameters are not what they must be."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of a system."""

    name: str
    popen: subprocess.Popen[str]
    steps: bool
    """Whether it is one that steps, and talks with the benchmark."""
    log: Path


class Crew:
    """All processes of a system that trains.

    Args:
        python: the interpreter of the system's environment.
        module: the system, one of `trainers`.
        job: what to do.
    """

    def __init__(self, python: Path, module: Any, job: Job) -> None:
        self._lines: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self._processes: list[Process] = []
        path = job.write()
        environment = os.environ | surroundings(job.threads)
        try:
            for role, index in module.roles(job):
                command = getattr(module, "command", lambda *_: None)(role, index, job)
                system = module.__name__.removeprefix("trainers.")
                command = command or [str(python), "-m", "trainers", system, role, str(index), str(path)]
                self._start(f"{role}-{index}", command, environment, role == "worker", Path(job.folder))
        except BaseException:
            self.end()
            raise

    def _start(self, name: str, command: Sequence[str], environment: dict[str, str], steps: bool, folder: Path) -> None:
        log = folder / f"{name}.log"
        with log.open("w") as output:
            popen = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.PIPE if steps else subprocess.DEVNULL,
                stdout=subprocess.PIPE if steps else output,
                stderr=output,
                text=True,
                start_new_session=True,
            )
        process = Process(name, popen, steps, log)
        self._processes.append(process)
        if steps:
            threading.Thread(target=self._follow, args=(process,), daemon=True).start()

    def _follow(self, process: Process) -> None:
        assert process.popen.stdout
        for line in process.popen.stdout:
            if line.startswith("@"):
                self._lines.put((process.name, json.loads(line[1:])))

    def until(self, mark: str) -> list[dict[str, Any]]:
        """What each worker says at this halt. Raises Broken when one never gets there."""
        said: dict[str, dict[str, Any]] = {}
        end = time.monotonic() + PATIENCE
        workers = sum(process.steps for process in self._processes)
        while len(said) < workers:
            try:
                name, line = self._lines.get(timeout=0.2)
            except queue.Empty:
                gone = [process for process in self._processes if process.popen.poll() is not None]
                if gone or time.monotonic() > end:
                    raise Broken(self._told(gone or self._processes, mark)) from None
                continue
            if line["mark"] != mark:
                raise Broken(f"{name} is at {line['mark']} instead of {mark}")
            said[name] = line
        return [said[name] for name in sorted(said)]

    def _told(self, processes: list[Process], mark: str) -> str:
        tails = [f"{process.name}: {process.log.read_text()[-1500:]}" for process in processes]
        return f"not {mark}; ended or late: " + "\n".join(tails)

    def go(self) -> None:
        """Let all workers go on."""
        for process in self._processes:
            if process.steps:
                assert process.popen.stdin
                process.popen.stdin.write("\n")
                process.popen.stdin.flush()

    def cpu_seconds(self) -> float:
        """What all processes and those that they started have computed so far."""
        # Linux: the id of another process's CPU clock is made of its number; it counts all threads, ended ones as well.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self._everybody())

    def peaks(self) -> dict[str, float]:
        """For each process the most memory that it ever had resident, in MiB."""
        found = {}
        for process in self._processes:
            lines = Path(f"/proc/{process.popen.pid}/status").read_text().splitlines()
            found[process.name] = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
        return found

    def _everybody(self) -> list[int]:
        sessions = {process.popen.pid for process in self._processes}
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) in sessions:
                found.append(int(path.parent.name))
        return found

    def end(self) -> None:
        """End every process: those that step get a moment to do so by themselves."""
        end = time.monotonic() + 5
        for process in self._processes:
            if process.popen.stdin:
                with contextlib.suppress(BrokenPipeError):
                    process.popen.stdin.close()
            while process.steps and process.popen.poll() is None and time.monotonic() < end:
                time.sleep(0.02)
        for signum, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            end = time.monotonic() + patience
            left = [process.popen for process in self._processes if process.popen.poll() is None]
            for popen in left:
                os.killpg(popen.pid, signum)
            while time.monotonic() < end and any(popen.poll() is None for popen in left):
                time.sleep(0.02)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()


def surroundings(threads: int) -> dict[str, str]:
    """The environment that all processes of all systems have alike."""
    pinned = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB")
    return {
        **{f"{name}_NUM_THREADS": str(threads) for name in pinned},
        **ALLOCATOR,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
    }
