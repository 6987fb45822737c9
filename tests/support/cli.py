"""The command line in tests: in this process, as a process, and in a terminal."""

import asyncio
import contextlib
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from tests.support.up import free_offset
from tests.support.wait import until
from tidemill.cli.stack import SERVICES, Stack

COMMAND = [sys.executable, "-m", "tidemill.cli"]
_OWN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
"""Makes standard input the terminal whose Ctrl-C is meant for this process, which then becomes another program."""


_OF_TERMINALS = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")


def environment(**variables: str) -> dict[str, str]:
    """This process's environment without what would point commands at services or terminals, and with `variables`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TIDEMILL_") and k not in _OF_TERMINALS}
    return kept | variables


@contextmanager
def storage(data: Path) -> Iterator[Stack]:
    """The registry and the artifact service as processes, announced in `data` as `tidemill up` does it."""
    data.mkdir()
    stack = Stack(data=data, port_offset=free_offset(shards=1), shards=1)
    programs = [program for program in stack.programs() if program.name in ("registry", "artifacts")]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", program.module],
            env=environment(**program.environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for program in programs
    ]
    try:
        deadline = time.monotonic() + 30
        for program in programs:
            while not _answers(program.ready_url):
                assert time.monotonic() < deadline, f"{program.name} is not ready"
                time.sleep(0.02)
        (data / "up.json").write_text(json.dumps({"port_offset": stack.port_offset, "shards": stack.shards}))
        yield stack
    finally:
        for process in started:
            process.terminate()
        for process in started:
            process.wait(20)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def addresses(**services: str) -> dict[str, str]:
    """The variables that say where these services are."""
    return {SERVICES[name]: address for name, address in services.items()}


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self._master = master
        self._process = process
        self._raw = b""
        self._closed = False
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # the command has ended, and the terminal with it
            piece = b""
        self._raw += piece
        if not piece:
            self._closed = True
            asyncio.get_running_loop().remove_reader(self._master)

    @property
    def text(self) -> str:
        """Everything that was written, control sequences included."""
        return self._raw.decode(errors="replace")

    async def shows(self, wanted: str) -> None:
        """Return when the command has written this."""
        await until(lambda: wanted in self.text or self._closed, what=wanted)
        assert wanted in self.text, self.text

    def press_ctrl_c(self) -> None:
        """As a user does."""
        os.write(self._master, b"\x03")

    async def ended(self) -> int:
        """The exit status."""
        status = await asyncio.wait_for(self._process.wait(), 20)
        await until(lambda: self._closed)
        return status

    def close(self) -> None:
        """End it, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        asyncio.get_running_loop().remove_reader(self._master)
        os.close(self._master)


@asynccontextmanager
async def terminal(*arguments: str, columns: int = 80, **variables: str) -> AsyncIterator[Terminal]:
    """A `tidemill` command in a terminal of so many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-c", _OWN_TERMINAL],
        *COMMAND,
        *arguments,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment(TERM="xterm", **variables),
        start_new_session=True,
    )
    os.close(slave)
    screen = Terminal(master, process)
    try:
        yield screen
    finally:
        screen.close()
        await process.wait()


async def run(*arguments: str, **variables: str) -> tuple[int, str, str]:
    """Exit status, output and errors of a `tidemill` command in a pipe."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment(**variables),
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()
