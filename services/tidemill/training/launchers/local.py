"""Workers as child processes on this machine."""

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Mapping
from contextlib import suppress

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
_READ = 65536
_DRAIN = 2.0
"""Seconds to wait for the rest of the output once a worker has ended: a grandchild may keep the pipe open."""


class Local(Launcher):
    """Starts each worker in a session of its own, so that it can be ended with everything that it started."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def launch(self, job: str, environment: Mapping[str, str], output: Output) -> Process:
        """Start one worker, by exec alone: nothing of this process runs in it."""
        scratch = self._settings.scratch / names.check(job)
        try:
            await asyncio.to_thread(scratch.mkdir, mode=0o700, parents=True, exist_ok=True)
            process = await asyncio.create_subprocess_exec(
                *self._settings.command,
                stdin=asyncio.subprocess.PIPE,  # never written to: its end tells the worker that this process is gone
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={**self._inherited(), "TIDEMILL_WORKER_DATA": str(scratch), "TMPDIR": str(scratch), **environment},
                start_new_session=True,
            )
        except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
            raise _failed(FailedPrecondition, error) from error
        except OSError as error:
            raise _failed(Unavailable, error) from error
        return LocalProcess(process, output, self._settings.grace)

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

    async def clean(self, job: str) -> None:
        """Delete the scratch directory of a job, or all of them."""
        target = self._settings.scratch / names.check(job) if job else self._settings.scratch
        await asyncio.to_thread(shutil.rmtree, target, ignore_errors=True)


class LocalProcess(Process):
    """A child process, leader of its own session and process group."""

    def __init__(self, process: asyncio.subprocess.Process, output: Output, grace: float) -> None:
        self._process = process
        self._grace = grace
        self._reader = asyncio.ensure_future(_hand_on(process.stdout, output))
        self._ended = asyncio.ensure_future(self._end())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

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

    async def _end(self) -> int:
        status = await self._process.wait()
        self._signal(signal.SIGKILL)  # what it has started must not go on without it
        done, _ = await asyncio.wait({self._reader}, timeout=_DRAIN)
        if not done:
            self._reader.cancel()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return status

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


async def _hand_on(stream: asyncio.StreamReader | None, output: Output) -> None:
    """Hand on the lines of `stream`, each at most `MAX_LINE` characters."""
    assert stream is not None
    rest = b""
    while data := await stream.read(_READ):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            _pieces(line, output)
        if len(rest) >= MAX_LINE * 4:
            _pieces(rest, output)
            rest = b""
    if rest:
        _pieces(rest, output)


def _pieces(line: bytes, output: Output) -> None:
    text = line.decode("utf-8", "replace").rstrip("\r")
    for start in range(0, max(len(text), 1), MAX_LINE):
        output(text[start : start + MAX_LINE])


def _failed(kind: type[TidemillError], error: OSError) -> TidemillError:
    return kind(f"a worker cannot be started: {error.strerror}", reason="LAUNCH_FAILED")
