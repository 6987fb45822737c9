"""The whole embedded platform as users run it: `tidemill up` in a process of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tidemill.cli.stack import (
    ARTIFACTS,
    INFERENCE,
    INFERENCE_SECOND,
    MANAGEMENT,
    OIP_REST,
    OPS,
    PARAMETERS,
    REGISTRY,
    SHARD_STRIDE,
    TFS_REST,
    TRAINING,
    Stack,
)

ROOT = Path(__file__).parents[2]
START_SECONDS = 60


def free_offset(shards: int = 2) -> int:
    """A port offset at which every port of the stack is free now."""
    shifts = [SHARD_STRIDE * number for number in range(shards)]
    ports = [REGISTRY, ARTIFACTS, TRAINING, INFERENCE, INFERENCE_SECOND, OIP_REST, TFS_REST, MANAGEMENT]
    ports += [*OPS.values(), *(PARAMETERS + s for s in shifts), *(OPS["parameters"] + s for s in shifts)]
    start = 10000 + (os.getpid() * 61) % 20000
    for offset in range(start, start + 20000, 257):
        with contextlib.ExitStack() as held:
            try:
                for port in set(ports):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port + offset))
            except OSError:
                continue
            return offset
    raise AssertionError("no free ports")


class Up:
    """A running `tidemill up`."""

    def __init__(self, data: Path, *, shards: int = 2, offset: int | None = None) -> None:
        self.data = data
        self.shards = shards
        self.stack = Stack(data=data, port_offset=free_offset(shards) if offset is None else offset, shards=shards)
        self.process: subprocess.Popen[str] | None = None
        self.log = data.parent / f"{data.name}.up.log"

    def start(self) -> None:
        """Start it, and return when it says that it is ready."""
        command = [sys.executable, "-m", "tidemill.cli", "up", "--data", str(self.data)]
        command += ["--port-offset", str(self.stack.port_offset), "--shards", str(self.shards)]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, stdin=subprocess.DEVNULL, text=True, start_new_session=True
            )
        assert self.process.stdout is not None
        watchdog = threading.Timer(START_SECONDS, self.process.kill)
        watchdog.start()
        try:
            for line in self.process.stdout:
                if "is ready" in line:
                    return
        finally:
            watchdog.cancel()
        self.stop()
        raise AssertionError(f"tidemill up did not become ready:\n{self.log.read_text()[-4000:]}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit status."""
        assert self.process is not None
        self.process.send_signal(number)
        try:
            status = self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return status

    def processes(self) -> dict[int, str]:
        """Command lines of all processes that belong to this platform, by pid."""
        return processes_of(self.data)

    def __enter__(self) -> "Up":
        self.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.stop()

    def cli(self, *arguments: str, timeout: float = 120) -> "subprocess.CompletedProcess[str]":
        """The outcome of a `tidemill` command against this platform."""
        return subprocess.run(
            [sys.executable, "-m", "tidemill.cli", *arguments, "--data", str(self.data)],
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def json(self, *arguments: str) -> Any:
        """What a `tidemill` command prints with --json; it must succeed."""
        done = self.cli(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def processes_of(data: Path) -> dict[int, str]:
    """Command lines of the live processes whose environment or arguments name `data`, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended meanwhile
            arguments = (entry / "cmdline").read_bytes()
            if str(data).encode() in arguments + (entry / "environ").read_bytes() and arguments:
                found[int(entry.name)] = arguments.replace(b"\0", b" ").decode(errors="replace")
    found.pop(os.getpid(), None)
    return found


@contextlib.contextmanager
def platform(data: Path, **options: Any) -> Iterator[Up]:
    """A running platform over `data`, stopped at the end."""
    with Up(data, **options) as up:
        yield up
