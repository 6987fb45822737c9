"""A child process and what it prints, line by line."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

MAX_LINE = 65536
"""Most bytes of a line; longer ones are broken up."""


class Process:
    """A process that leads a session of its own; made by `start`."""

    def __init__(self, pipe: "_Pipe") -> None:
        self._pipe = pipe
        self.pid: int = pipe.transport.get_pid()

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return not self._pipe.exited.is_set()

    def signal(self, number: signal.Signals) -> None:
        """To its group: also what it may have started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def wait(self, drain: float) -> int:
        """Its exit status, negative for a signal, once it has ended; nothing of its group goes on then.

        Args:
            drain: most seconds to wait for the rest of its output, which what has left its group may keep open.
        """
        await self._pipe.exited.wait()
        self.signal(signal.SIGKILL)
        with suppress(TimeoutError):
            async with asyncio.timeout(drain):
                await self._pipe.silent.wait()
        status: int = self._pipe.transport.get_returncode()
        self._pipe.transport.close()
        return status


class _Pipe(asyncio.SubprocessProtocol):
    """Both ends: asyncio's own streams take a process that has ended for alive while its output is kept open."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = b""
        self.transport: Any = None
        self.exited = asyncio.Event()
        self.silent = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It has started."""
        self.transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        """It has printed something."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._hand_on(line)
        while len(self._rest) >= MAX_LINE:
            self._hand_on(self._rest[:MAX_LINE])
            self._rest = self._rest[MAX_LINE:]

    def pipe_connection_lost(self, fd: int, error: Exception | None) -> None:
        """It will print no more."""
        if self._rest:
            self._hand_on(self._rest)
            self._rest = b""
        self.silent.set()

    def process_exited(self) -> None:
        """It has ended."""
        self.exited.set()

    def _hand_on(self, line: bytes) -> None:
        for start in range(0, max(len(line), 1), MAX_LINE):
            self._on_line(line[start : start + MAX_LINE].decode(errors="replace").rstrip("\r"))


async def start(command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], None]) -> Process:
    """Start `command` with no input; both its outputs go to `on_line`, line by line.

    It gets a session of its own: Ctrl-C in a terminal does not reach it.

    Raises:
        OSError: it cannot be started.
    """
    _, pipe = await asyncio.get_running_loop().subprocess_exec(
        lambda: _Pipe(on_line),
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=dict(environment),
        start_new_session=True,
    )
    return Process(pipe)
