"""Runs the services as child processes: starts, watches, restarts and stops them.

It never imports grpc: a process that has used grpc must not fork, and this one forks whenever it starts a service.
"""

import asyncio
import signal
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from tidemill import config
from tidemill.cli import process
from tidemill.cli.logfile import LogFile
from tidemill.errors import Unavailable

USAGE_ERROR = 2
"""Exit status of a service whose settings are wrong or whose port is taken: starting it again would not help."""
PORT_IN_USE = "PORT_IN_USE"
LOG_BYTES = 8 << 20
_POLL = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A service to run.

    Args:
        name: shown before its log lines.
        module: run as `python -m module`.
        environment: variables beside those of this process.
        ready_url: answers 200 when the service can serve.
        tier: programs of a higher tier are stopped first.
    """

    name: str
    module: str
    environment: Mapping[str, str]
    ready_url: str
    tier: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Times in seconds.

    Args:
        first_pause, longest_pause: before a program is started again; doubled each time, up to the longest.
        healthy: a program that ran so long begins with the first pause again.
        tier: time for the programs of one tier to end before the next tier is stopped too.
        grace: time for all programs to end before they are killed.
        drain: time to read what is left of a program's output once it has ended.
    """

    first_pause: float = 0.5
    longest_pause: float = 10.0
    healthy: float = 60.0
    tier: float = 3.0
    grace: float = 8.0
    drain: float = 1.0


class _Child:
    """A program and its process, if it has one now."""

    def __init__(self, program: Program, log: LogFile) -> None:
        self.program = program
        self.log = log
        self.unlogged = False
        self.process: process.Process | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    def signal(self, number: signal.Signals) -> None:
        if self.process is not None and self.process.alive:
            self.process.signal(number)


class Supervisor:
    """Keeps `programs` running until told to stop.

    Args:
        programs: what to run; those with the highest tier are stopped first.
        logs: directory of their log files, each bounded to twice `LOG_BYTES`.
        show: gets every log line, with the name of its program.
        pace: how long things may take.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        logs: Path,
        show: Callable[[str, str], None],
        pace: Pace | None = None,
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._show = show
        self._logs = logs
        self._pace = pace or Pace()
        self._children = [_Child(p, LogFile(logs / f"{p.name}.log", LOG_BYTES)) for p in programs]
        self._stopping = asyncio.Event()
        self._keepers: dict[_Child, asyncio.Task[None]] = {}

    async def start(self, timeout: float) -> None:
        """Start all programs at once and return when every one is ready.

        Raises:
            Unavailable: one could not start, or was not ready within `timeout` seconds.
        """
        for child in self._children:
            _check_free(child.program)
        self._keepers = {child: asyncio.create_task(self._keep(child)) for child in self._children}
        waits = {asyncio.create_task(self._ready(child)): child.program.name for child in self._children}
        ready = asyncio.gather(*waits)
        try:
            first: set[asyncio.Future[Any]] = {ready, *self._keepers.values()}
            await asyncio.wait(first, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            self._check()
            late = [name for wait, name in waits.items() if not wait.done()]
            if late:
                raise Unavailable(f"not ready within {timeout:.0f} s: {', '.join(late)}", reason="START_FAILED")
            await ready
        finally:
            ready.cancel()
            await asyncio.gather(ready, return_exceptions=True)

    async def run(self) -> None:
        """Return when all programs were told to stop.

        Raises:
            Unavailable: one cannot be started any more.
        """
        await asyncio.wait(self._keepers.values(), return_when=asyncio.FIRST_COMPLETED)
        self._check()

    def _check(self) -> None:
        """Raises what ended a keeper."""
        for keeper in self._keepers.values():
            if keeper.done():
                keeper.result()

    async def stop(self) -> None:
        """End all programs: SIGTERM by tiers, from the highest on, and SIGKILL for what is left when the time is up."""
        self._stopping.set()
        deadline = asyncio.get_running_loop().time() + self._pace.grace
        order = sorted(self._keepers, key=lambda child: -child.program.tier)
        for _, tier in groupby(order, key=lambda child: child.program.tier):
            children = list(tier)
            for child in children:
                child.signal(signal.SIGTERM)
            await self._ended(children, min(self._pace.tier, deadline - asyncio.get_running_loop().time()))
        await self._ended(order, deadline - asyncio.get_running_loop().time())
        for child in order:
            child.signal(signal.SIGKILL)
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)  # `run` has raised what there was
        for child in self._children:
            child.log.close()

    async def _ended(self, children: Sequence[_Child], timeout: float) -> None:
        if children:
            await asyncio.wait([self._keepers[child] for child in children], timeout=max(0.0, timeout))

    async def _keep(self, child: _Child) -> None:
        """Run a program again and again until all are stopped. Raises Unavailable when it says that there is no use."""
        pause, name = self._pace.first_pause, child.program.name
        while not self._stopping.is_set():
            began = asyncio.get_running_loop().time()
            try:
                status = await self._once(child)
                how = _how(status)
            except OSError as error:  # this machine has no room for another process now
                status, how = -1, f"could not be started: {error.strerror}"
            if self._stopping.is_set():
                return
            if status == USAGE_ERROR:
                raise Unavailable(f"{name} could not start; see {self._logs / name}.log", reason="START_FAILED")
            if asyncio.get_running_loop().time() - began > self._pace.healthy:
                pause = self._pace.first_pause
            self._show(name, f"{how}; it is started again in {pause:.1f} s")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            pause = min(pause * 2, self._pace.longest_pause)

    async def _once(self, child: _Child) -> int:
        """Run a program to its end; its exit status, negative for a signal. Raises OSError."""
        program = child.program
        command = [sys.executable, "-m", "tidemill.cli.child", program.module]
        environment = {**config.environ(), **program.environment}
        child.process = await process.start(command, environment, lambda line: self._line(child, line))
        if self._stopping.is_set():  # it was being made while the others were told to end
            child.process.signal(signal.SIGTERM)
        return await child.process.wait(self._pace.drain)

    def _line(self, child: _Child, line: str) -> None:
        try:
            child.log.write(line)
        except OSError as error:  # a full disk must not stop the services from being read, and so from running
            if not child.unlogged:
                self._show(child.program.name, f"its log file cannot be written: {error.strerror}")
            child.unlogged = True
        self._show(child.program.name, line)

    async def _ready(self, child: _Child) -> None:
        while not (child.alive and await asyncio.to_thread(_answers, child.program.ready_url)):  # noqa: ASYNC110 another process
            await asyncio.sleep(_POLL)


def _check_free(program: Program) -> None:
    """Raises Unavailable when another process answers in place of the program: it would be taken for ready."""
    address = urllib.parse.urlsplit(program.ready_url)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.hostname or "127.0.0.1", address.port or 80))
        except OSError as error:
            raise Unavailable(
                f"{program.name} could not start: cannot listen on {address.netloc}: {error.strerror}",
                reason=PORT_IN_USE,
            ) from error


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except (OSError, HTTPException):
        return False


def _how(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def console(width: int, stream: IO[str]) -> Callable[[str, str], None]:
    """A `show` that prefixes each line with its program's name, padded to `width`, while anybody reads `stream`."""
    gone = False

    def show(name: str, line: str) -> None:
        nonlocal gone
        if gone:
            return
        try:
            stream.write(f"{name:<{width}} | {line}\n")
            stream.flush()
        except BrokenPipeError:
            gone = True

    return show
