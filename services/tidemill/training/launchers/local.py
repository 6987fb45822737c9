"""Workers on this machine, each under a keeper of its own, which goes on when this process ends.

Workers of Tidemill's own are forked from one process that has imported what they need, so they start at once; other
programs, and workers where that does not work, are started by exec.
"""

import asyncio
import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from tidemill import config, names
from tidemill.errors import AlreadyExists, FailedPrecondition, TidemillError, Unavailable
from tidemill.training import keeper
from tidemill.training.launchers.base import Launcher, Output, Process, Settings
from tidemill.training.nursery import Nursery
from tidemill.training.printed import Printed
from tidemill.training.worker.names import KEPT

INHERITED = (
    "PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LD_LIBRARY_PATH",
    "LD_PRELOAD", "MALLOC_ARENA_MAX",
)  # fmt: skip
"""Variables of this process that a worker needs to run at all; any other could be a secret that is not its business."""
INHERITED_PREFIXES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "OMP_", "MKL_", "TIDEMILL_WORKER_", "TIDEMILL_LOG_")
_FOLDER = "keeper-"
_LOOK = 0.05
"""Seconds between two looks at what a worker has printed and whether it has ended."""
_START = 0.005
_LATE = 3.0
"""Seconds beyond the grace after which a keeper that does not obey is killed with its worker."""
_CHUNK = 1 << 16
_MISSING = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENOEXEC, errno.ELOOP)
_KILLED = -int(signal.SIGKILL)


class Local(Launcher):
    """Starts each worker in a session of its own, so that it can be ended with everything that it started.

    What belongs to a worker lies in the folder `keeper-{handle}` of its job: see `tidemill.training.keeper`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        inherited = self._inherited()
        # Threads that a library starts when it is imported would not be there after a fork.
        alone = {"OPENBLAS_NUM_THREADS": "1", "TIDEMILL_WORKER_DATA": str(settings.scratch)}
        self._nursery = Nursery(settings.template, {**inherited, **alone})

    async def launch(self, job: str, handle: str, environment: Mapping[str, str], output: Output) -> Process:
        """Start one worker: nothing of this process runs in it."""
        scratch = self._settings.scratch / names.check(job)
        folder = scratch / f"{_FOLDER}{names.check(handle)}"
        own = {"TIDEMILL_WORKER_DATA": str(scratch), "TMPDIR": str(scratch)}
        forked = await self._nursery.ready()
        try:
            scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
            process = self._keep(folder, {**self._inherited(), **own, **environment}, output, forked)
        except FileExistsError as error:
            raise AlreadyExists(f"the handle {handle} was used before", reason="HANDLE_USED") from error
        except OSError as error:
            raise _failed(error.errno) from error
        try:
            await process.started()
        except BaseException:
            await process.stop(0)
            await process.forget()
            raise
        return process

    def _keep(self, folder: Path, environment: Mapping[str, str], output: Output, forked: bool) -> "LocalProcess":
        """Start a keeper. It inherits the lock, so there is no moment in which nobody holds it; and both ends of the
        pipe are open before it begins, so it knows from the first moment whether somebody looks after the worker."""
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.mkfifo(folder / "control", 0o600)
        orders = os.open(folder / "control", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        control = os.open(folder / "control", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        printed = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        limits = (str(self._settings.output_bytes), str(self._settings.abandoned))
        program = (sys.executable, "-I", "-S", keeper.__file__, str(folder), *limits)
        try:
            if not forked or not self._nursery.fork(program, str(folder), environment, (lock, orders, printed)):
                child = subprocess.Popen(
                    (*program, str(orders), *self._settings.command),
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=printed,  # should the keeper itself fail, then the job's log shows why
                    env=dict(environment),
                    start_new_session=True,
                    pass_fds=(lock, orders),
                )
                # It ends as soon as the keeper is on its own, whatever becomes of this launch.
                asyncio.get_running_loop().run_in_executor(None, child.wait)
        except BaseException:
            os.close(control)
            raise
        finally:
            for fd in (lock, orders, printed):
                os.close(fd)
        return LocalProcess(folder, control, Printed(output), 0, self._settings.grace)

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
        """Look after the worker of a folder, if its keeper lives or has written down how it ended by itself."""
        folder = self._settings.scratch / names.check(job) / f"{_FOLDER}{names.check(handle)}"
        if not (folder / "output").exists():  # its launch got no further
            return None
        try:
            control = os.open(folder / "control", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # nobody reads from it: there is no keeper
            control = -1
        process = LocalProcess(folder, control, Printed(output, position), position, self._settings.grace)
        with suppress(FailedPrecondition, Unavailable):
            await process.started()
            if not process.has_ended or _status(folder) is not None:
                return process
        await process.wait()  # for the rest of its output
        return None

    async def clean(self, job: str, *, paused: bool = False) -> None:
        """End the workers of a job, and delete its folder, or what is in it but for what is kept."""
        folder = self._settings.scratch / names.check(job)
        for kept in sorted(folder.glob(f"{_FOLDER}*")):
            if not _is_free(kept / "lock"):
                process = await self.adopt(job, kept.name.removeprefix(_FOLDER), lambda *_: None, 0)
                if process is not None:
                    await process.stop()
        await asyncio.to_thread(_empty if paused else _delete, folder)

    async def close(self) -> None:
        """End what workers are forked from."""
        await self._nursery.close()

    async def sweep(self, jobs: Collection[str]) -> None:
        """Clean up after all jobs but these."""
        with suppress(FileNotFoundError):
            found = {path.name for path in self._settings.scratch.iterdir()}
            await asyncio.gather(*(self.clean(job) for job in found - set(jobs) if names.is_name(job)))


class LocalProcess(Process):
    """A worker, leader of its own session and process group, under its keeper."""

    def __init__(
        self,
        folder: Path,
        control: int,
        printed: Printed,
        position: int,
        grace: float,
    ) -> None:
        self._folder = folder
        self._control = control
        self._printed = printed
        self._position = position
        self._grace = grace
        self._pids: tuple[int, ...] = (0, 0, 0, 0)
        self._ended = asyncio.ensure_future(self._follow())

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._pids[0]

    @property
    def has_ended(self) -> bool:
        """Whether its keeper has ended."""
        return _is_free(self._folder / "lock")

    async def started(self) -> None:
        """Return once the worker is started.

        Raises:
            FailedPrecondition, Unavailable: reason LAUNCH_FAILED, it cannot be.
        """
        while not (pids := _numbers(self._folder / "pid")):
            if self.has_ended:
                pids = _numbers(self._folder / "pid")
                if not pids:
                    raise _failed(*_numbers(self._folder / "error"))
                break
            await asyncio.sleep(_START)
        self._pids = pids

    async def wait(self) -> int:
        """Its exit status, once it has ended and its output was handed on."""
        return await asyncio.shield(self._ended)

    async def stop(self, grace: float | None = None) -> None:
        """End it and everything it has started."""
        grace = self._grace if grace is None else grace
        if not self._ended.done():
            with suppress(OSError):  # the keeper has ended, or has more orders than it can read
                os.write(self._control, f"{grace}\n".encode())
            done, _ = await asyncio.wait({self._ended}, timeout=grace + _LATE)
            if not done:
                self._kill()
        await self.wait()

    async def forget(self) -> None:
        """Delete its folder."""
        await self.wait()
        await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)

    async def _follow(self) -> int:
        """Hand on its output until it has ended."""
        file = os.open(self._folder / "output", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while True:
                ended = self.has_ended  # looked at first: what was printed before is there then
                while data := os.pread(file, _CHUNK, self._position):
                    self._position += len(data)
                    self._printed.feed(data)
                    await asyncio.sleep(0)
                if ended:
                    break
                await asyncio.sleep(_LOOK)
            self._printed.end()
        finally:
            os.close(file)
            if self._control >= 0:
                os.close(self._control)
                self._control = -1
        status = _numbers(self._folder / "status")
        if not status:  # it was not the worker that has ended, but its keeper
            self._kill()
        return status[0] if status else _KILLED

    def _kill(self) -> None:
        """Kill the worker with what it has started, and its keeper, unless others have their process ids by now."""
        pids = _numbers(self._folder / "pid")
        if not pids:
            return
        worker, worker_began, own, own_began = pids
        with suppress(ProcessLookupError, PermissionError):
            if keeper.began(worker) == worker_began:
                os.killpg(worker, signal.SIGKILL)
        with suppress(ProcessLookupError, PermissionError):
            if keeper.began(own) == own_began:
                os.kill(own, signal.SIGKILL)


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _empty(folder: Path) -> None:
    """Delete what is not kept for later."""
    with suppress(FileNotFoundError):
        for path in folder.iterdir():
            if path.is_dir():
                _delete(path)
            elif not path.name.startswith(KEPT):
                path.unlink()


def _is_free(lock: Path) -> bool:
    """Whether nobody holds a lock, or there is none."""
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _status(folder: Path) -> int | None:
    """How a worker has ended by itself; None, when it was told to end or that is not known."""
    status = _numbers(folder / "status")
    return status[0] if status and not status[1] else None


def _numbers(path: Path) -> tuple[int, ...]:
    """The numbers in a file; none when there is no such file."""
    try:
        return tuple(int(number) for number in path.read_text("ascii").split())
    except FileNotFoundError:
        return ()


def _failed(number: int | None = None) -> TidemillError:
    """What an error number means for a launch."""
    kind = FailedPrecondition if number in _MISSING else Unavailable
    said = os.strerror(number) if number is not None else "its keeper has ended"
    return kind(f"a worker cannot be started: {said}", reason="LAUNCH_FAILED")
