"""Runs the services as child processes: starts, watches, restarts and stops them.

It never imports grpc: a process that has used grpc must not fork, and this one forks whenever it starts a service.
"""

import asyncio
import logging
import os
import signal
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any

from tidemill import config
from tidemill.errors import Unavailable

USAGE_ERROR = 2
"""Exit status of a service whose settings are wrong or whose port is taken: starting it again would not help."""
STOP_SECONDS = 8.0
"""Time that services have to end after SIGTERM before they are killed."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_LINE = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A service to run.

    Args:
        name: shown before its log lines.
        module: run as `python -m module`.
        environment: variables beside those of this process.
        ready_url: answers 200 when the service can serve.
    """

    name: str
    module: str
    environment: Mapping[str, str]
    ready_url: str


@dataclass(slots=True)
class _Child:
    program: Program
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0
    log: RotatingFileHandler | None = None
    readers: list["asyncio.Task[None]"] = field(default_factory=list)


class Supervisor:
    """Keeps `programs` running until told to stop.

    Args:
        programs: in order of dependency; they are stopped in the reverse order.
        logs: directory of their log files, each bounded to 2 x 8 MiB.
        show: gets every log line, with the name of its program.
    """

    def __init__(self, programs: Sequence[Program], logs: Path, show: Callable[[str, str], None]) -> None:
        logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._logs = logs
        self._show = show
        self._children = [_Child(program) for program in programs]
        self._stopping = False
        self._fatal: asyncio.Future[str] | None = None
        self._keepers: list[asyncio.Task[None]] = []

    async def start(self, timeout: float) -> None:
        """Start all programs at once and return when every one is ready.

        Raises:
            Unavailable: one could not start, or was not ready within `timeout` seconds.
        """
        self._fatal = asyncio.get_running_loop().create_future()
        self._keepers = [asyncio.create_task(self._keep(child)) for child in self._children]
        waits = asyncio.gather(*(self._ready(child) for child in self._children))
        try:
            pending: set[asyncio.Future[Any]] = {waits, self._fatal}
            await asyncio.wait(pending, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if self._fatal.done():
                raise Unavailable(self._fatal.result(), reason="START_FAILED")
            if not waits.done():
                raise Unavailable(f"the services were not ready within {timeout:.0f} s", reason="START_FAILED")
        finally:
            waits.cancel()
            await asyncio.gather(waits, return_exceptions=True)

    async def run(self) -> None:
        """Return never, but by being cancelled, or when a program cannot be started any more.

        Raises:
            Unavailable: with what it said.
        """
        assert self._fatal is not None
        raise Unavailable(await self._fatal, reason="START_FAILED")

    async def stop(self) -> None:
        """End all programs: SIGTERM in reverse order, SIGKILL for those that are still there after `STOP_SECONDS`."""
        self._stopping = True
        alive = [child for child in reversed(self._children) if child.process and child.process.returncode is None]
        for child in alive:
            _signal(child, signal.SIGTERM)
        waits = [asyncio.create_task(child.process.wait()) for child in alive if child.process]
        if waits:
            await asyncio.wait(waits, timeout=STOP_SECONDS)
        for child in self._children:
            _signal(child, signal.SIGKILL)  # to the group: also what a service may have left behind
        await asyncio.gather(*waits)
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        for child in self._children:
            await asyncio.gather(*child.readers, return_exceptions=True)
            if child.log is not None:
                child.log.close()

    async def _keep(self, child: _Child) -> None:
        pause = _FIRST_PAUSE
        while not self._stopping:
            began = asyncio.get_running_loop().time()
            await self._spawn(child)
            assert child.process is not None
            status = await child.process.wait()
            await asyncio.gather(*child.readers)
            if self._stopping:
                return
            if status == USAGE_ERROR and self._fatal is not None and not self._fatal.done():
                self._fatal.set_result(f"{child.program.name} could not start; see its lines above")
                return
            if asyncio.get_running_loop().time() - began > 60:
                pause = _FIRST_PAUSE
            child.restarts += 1
            self._show(child.program.name, f"ended with status {status}; starting it again in {pause:.1f} s")
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _spawn(self, child: _Child) -> None:
        program = child.program
        if child.log is None:
            child.log = RotatingFileHandler(self._logs / f"{program.name}.log", maxBytes=8 << 20, backupCount=1)
        child.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tidemill.cli.child",
            program.module,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**config.environ(), **program.environment},
            limit=_LINE,
            # A group of its own: Ctrl-C reaches only the supervisor, which then ends the services in order.
            start_new_session=True,
        )
        assert child.process.stdout is not None
        child.readers = [asyncio.create_task(self._forward(child, child.process.stdout))]

    async def _forward(self, child: _Child, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                raw = await stream.readuntil(b"\n")
            except asyncio.IncompleteReadError as end:
                raw = end.partial
            except asyncio.LimitOverrunError as overrun:
                raw = await stream.read(overrun.consumed)
            if not raw:
                return
            line = raw.decode(errors="replace").rstrip("\n")
            if child.log is not None:
                child.log.emit(logging.makeLogRecord({"msg": line.replace("%", "%%")}))
            self._show(child.program.name, line)

    async def _ready(self, child: _Child) -> None:
        while not await asyncio.to_thread(_answers, child.program.ready_url):  # noqa: ASYNC110 another process
            await asyncio.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _signal(child: _Child, number: signal.Signals) -> None:
    if child.process is None:
        return
    try:
        os.killpg(child.process.pid, number)
    except ProcessLookupError:
        return


def console(width: int, stream: IO[str]) -> Callable[[str, str], None]:
    """A `show` that prefixes each line with its program's name, padded to `width`."""

    def show(name: str, line: str) -> None:
        stream.write(f"{name:<{width}} | {line}\n")
        stream.flush()

    return show
