"""Workers as child processes on this machine."""

import asyncio
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from tidemill import config, names
from tidemill.errors import FailedPrecondition, TidemillError, Unavailable
from tidemill.training.launchers.base import MAX_LINE, Launcher, Output, Process, Settings

LOG = logging.getLogger(__name__)
INHERITED = (
    "PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "LD_PRELOAD", "MALLOC_ARENA_MAX",
)  # fmt: skip
"""Variables of this process that a worker needs to run at all; any other could be a secret that is not its business."""
INHERITED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "MKL_", "TIDEMILL_WORKER_", "TIDEMILL_LOG_")
_DRAIN = 2.0
"""Seconds to wait for the rest of the output once a worker has ended: a grandchild may keep the pipe open."""


class Local(Launcher):
    """Starts each worker in a session of its own, so that it can be ended with everything that it started."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def launch(self, job: str, handle: str, environment: Mapping[str, str], output: Output) -> Process:
        """Start one worker, by exec alone: nothing of this process runs in it."""
        scratch = self._settings.scratch / names.check(job)
        try:
            await asyncio.to_thread(scratch.mkdir, mode=0o700, parents=True, exist_ok=True)
            _, protocol = await asyncio.get_running_loop().subprocess_exec(
                lambda: _Pipes(output),
                *self._settings.command,
                stdin=subprocess.PIPE,  # never written to: its end tells the worker that this process is gone
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**self._inherited(), "TIDEMILL_WORKER_DATA": str(scratch), "TMPDIR": str(scratch), **environment},
                start_new_session=True,
            )
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise _failed(FailedPrecondition, error) from error
        except OSError as error:
            raise _failed(Unavailable, error) from error
        return LocalProcess(protocol, self._settings.grace)

    def _inherited(self) -> dict[str, str]:
        own = config.environ()
        kept = {name: own[name] for name in own if name in INHERITED or name.startswith(INHERITED_PREFIXES)}
        threads = str(self._settings.threads)
        return {
            **kept,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
            "TIDEMILL_WORKER_THREADS": threads,
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            "PYTHONUNBUFFERED": "1",
        }

    async def adopt(self, job: str, handle: str, output: Output, position: int) -> Process | None:
        """None: a child has ended with the process that has started it."""
        return None

    async def clean(self, job: str) -> None:
        """Delete the scratch directory of a job."""
        await asyncio.to_thread(shutil.rmtree, self._settings.scratch / names.check(job), ignore_errors=True)

    async def sweep(self, jobs: Collection[str]) -> None:
        """Delete the scratch directories of all jobs but these."""
        found = await asyncio.to_thread(os.listdir, self._settings.scratch) if self._settings.scratch.exists() else []
        for job in set(found) - set(jobs):
            await self.clean(job)


class _Pipes(asyncio.SubprocessProtocol):
    """The ends of a child's pipes: breaks up what it prints into lines.

    Unlike asyncio's streams it tells the end of the process from the end of its output, which whatever the process has
    started may keep open.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._rest = b""
        self._position = 0
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
            self._hand_on(line, 1)
        if len(self._rest) >= MAX_LINE * 4:  # however many bytes a character has, that is a full line
            self._hand_on(self._rest)
            self._rest = b""

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        """A pipe has come to its end."""
        if fd == 1:
            if self._rest:
                self._hand_on(self._rest)
            self.silent.set()

    def process_exited(self) -> None:
        """It has ended."""
        self.exited.set()

    def _hand_on(self, line: bytes, end: int = 0) -> None:
        self._position += len(line) + end
        text = line.decode("utf-8", "replace").rstrip("\r")
        for start in range(0, max(len(text), 1), MAX_LINE):
            self._output(text[start : start + MAX_LINE], self._position)


class LocalProcess(Process):
    """A child process, leader of its own session and process group."""

    def __init__(self, pipes: _Pipes, grace: float) -> None:
        self._pipes = pipes
        self._pid: int = pipes.transport.get_pid()
        self._grace = grace
        self._ended = asyncio.ensure_future(self._end())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._pid

    async def wait(self) -> int:
        """Its exit status, once it has ended and its output was handed on."""
        return await asyncio.shield(self._ended)

    async def stop(self, grace: float | None = None) -> None:
        """End it and everything it has started."""
        if not self._ended.done():
            self._signal(signal.SIGTERM)
            done, _ = await asyncio.wait({self._ended}, timeout=self._grace if grace is None else grace)
            if not done:
                self._signal(signal.SIGKILL)
        await self.wait()

    async def forget(self) -> None:
        """Nothing is kept of it."""

    async def _end(self) -> int:
        await self._pipes.exited.wait()
        self._signal(signal.SIGKILL)  # what it has started must not go on without it
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                await self._pipes.silent.wait()
        status: int = self._pipes.transport.get_returncode()
        self._pipes.transport.close()
        return status

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)


def _failed(kind: type[TidemillError], error: OSError) -> TidemillError:
    return kind(f"a worker cannot be started: {error.strerror}", reason="LAUNCH_FAILED")
