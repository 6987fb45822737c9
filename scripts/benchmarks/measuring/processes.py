"""Processes that a benchmark starts: real shards as users start them, and helpers that say when they are ready."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.benchmarks.measuring.pinning import ROOT

PATIENCE = 60.0


class Broken(Exception):
    """A process that did not do what it was started for."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard of the parameter server that runs."""

    address: str
    pid: int


@contextmanager
def shards(count: int, threads: int = 1, **settings: str) -> Iterator[list[Shard]]:
    """So many shards, each in a process of its own, started as users do.

    Args:
        count: how many.
        threads: of the optimizer.
        settings: further ones, by the names of the command line.

    Raises:
        Broken: one does not start.
    """
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        started = []
        for index in range(count):
            announced, log = Path(name) / f"{index}.json", Path(name) / f"{index}.log"
            flags = {
                "shard": str(index),
                "port": "0",
                "ops-port": "0",
                "registry-address": "",
                "announce-file": str(announced),
                "optimizer-threads": str(threads),
                "log-level": "WARNING",
                **settings,
            }
            command = [sys.executable, "-m", "tidemill.parameters", *(f"--{key}={flags[key]}" for key in flags)]
            with log.open("w") as output:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            stack.callback(end, process)
            started.append((process, announced, log))
        yield [Shard(_address(*one), one[0].pid) for one in started]


def _address(process: "subprocess.Popen[Any]", announced: Path, log: Path) -> str:
    last = time.monotonic() + PATIENCE
    while not announced.exists():
        if process.poll() is not None or time.monotonic() > last:
            raise Broken(f"a shard did not start: {log.read_text()[-1500:]}")
        time.sleep(0.02)
    return f"127.0.0.1:{json.loads(announced.read_text())['grpc']}"


class Helper:
    """A module run in a process of its own that talks in lines of JSON; use as a context manager.

    Args:
        module: run with `-m`.
        arguments: its arguments.
    """

    def __init__(self, module: str, *arguments: str) -> None:
        command: Sequence[str] = [sys.executable, "-m", module, *arguments]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def say(self, **facts: Any) -> None:
        """Send it a line."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(facts) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """Its next line. Raises Broken when it has ended instead."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise Broken(f"a helper has ended: {self._process.wait()}")
        return json.loads(line)

    def ask(self, **facts: Any) -> Any:
        """Its answer to a line."""
        self.say(**facts)
        return self.hear()

    def __enter__(self) -> "Helper":
        return self

    def __exit__(self, *_: object) -> None:
        end(self._process)
        assert self._process.stdin
        assert self._process.stdout
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()


def end(process: "subprocess.Popen[Any]") -> None:
    """End a process: it gets a moment to do so by itself."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def cpu_seconds(*pids: int) -> float:
    """What processes have computed so far, all their threads together."""
    # Linux: the id of another process's CPU clock is made of its number.
    return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids)


def told(**facts: Any) -> None:
    """For a helper: say a line."""
    print(json.dumps(facts), flush=True)


def lines() -> Iterator[dict[str, Any]]:
    """For a helper: the lines that it is told, until the benchmark goes."""
    for line in sys.stdin:
        yield json.loads(line)
