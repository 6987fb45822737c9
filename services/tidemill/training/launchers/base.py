"""What a launcher is: it starts workers of jobs, finds them again, hands on what they print, and ends them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_LINE = 8192
"""Longest line handed on, in bytes of UTF-8; what is longer is broken up."""

Output = Callable[[str, int], None]
"""Takes one line that a worker has printed, without its end, and the position behind it in all that the worker prints.

Positions begin at 0 and grow from line to line; what else they mean is the launcher's own business. Who has stored the
line together with its position can have the output handed on from there by any later process of this service.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every launcher is told."""

    command: tuple[str, ...]
    """Program and arguments of a worker; never a shell's."""
    template: tuple[str, ...] = ()
    """Program and arguments of a process that becomes such workers by fork; empty = there is none."""
    threads: int
    """Threads that a worker's numerical libraries may use."""
    grace: float
    """Seconds between asking a worker to end and killing it."""
    scratch: Path
    """Directory for what workers write; what is left there after a job is deleted."""
    abandoned: float = 120.0
    """Seconds that a worker may go on while no process of this service looks after it."""
    output_bytes: int = 64 << 20
    """Bytes of one worker's output that are kept until they are handed on; of more, only the end."""
    options: tuple[str, ...] = ()
    """What this launcher alone is told, as `name=value`."""


class Process(ABC):
    """A worker that was started, with all the processes that it starts itself."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Its process id, on the host where it runs."""

    @abstractmethod
    async def wait(self) -> int:
        """Its exit status, once it has ended and all of its output was handed on; -n when signal n killed it.

        A worker that has ended where nothing of it can be learned counts as killed: -9.
        """

    @abstractmethod
    async def stop(self, grace: float | None = None) -> None:
        """Ask it to end, kill it after `grace` seconds (default: the settings'), and return when it is gone.

        It may be called again, with less grace, while it runs.
        """

    @abstractmethod
    async def forget(self) -> None:
        """Delete all that is kept of it; it has ended, and nobody will ask for it again."""


class Launcher(ABC):
    """Starts workers, and finds those again that a process of this service before has started.

    A worker has a handle, which the caller chooses: printable text of at most 64 characters of `[A-Za-z0-9._-]`, unique
    in its job for ever, made of the worker's rank and attempt. The caller stores it before it launches. So whatever
    happens to the caller between that and the return of `launch`, its successor asks `adopt` for that handle, and never
    launches it again: it takes another attempt, and with it another handle.

    A worker outlives the process that has launched it, but not for longer than `Settings.abandoned` seconds in which no
    process has it from `launch` or `adopt`: the launcher sees to its end then, without anybody's help.
    """

    @abstractmethod
    def __init__(self, settings: Settings) -> None:
        """A launcher of these settings."""

    @abstractmethod
    async def launch(self, job: str, handle: str, environment: Mapping[str, str], output: Output) -> Process:
        """Start one worker.

        Args:
            job: uid of the job, for its scratch directory.
            handle: by which it is found again; never used before in this job.
            environment: variables for this worker, beside those it needs to run at all. They hold a secret, which must
                not reach a command line, a log or anything that outlives the worker.
            output: takes its lines.

        Raises:
            FailedPrecondition: reason LAUNCH_FAILED, when it would fail again.
            Unavailable: reason LAUNCH_FAILED, when it may succeed later. Nothing of this handle runs then.
        """

    @abstractmethod
    async def adopt(self, job: str, handle: str, output: Output, position: int) -> Process | None:
        """Look after a worker that was launched before, by this process or another one, or whose launch was broken off.

        Args:
            job: uid of the job.
            handle: what it was launched with.
            output: takes its lines from now on.
            position: what was told with the last line that was stored; 0 = begin with the first line.

        Returns:
            The worker; one that has ended by itself meanwhile gives its exit status and the rest of its output, as if
            it had ended now. None, when nothing runs under this handle and nothing ever will, and there is no exit
            status that says anything of the worker: it was never started, it was ended on our behalf (by `stop`, or
            because it was abandoned), or what was known of it is lost with the machine.

        Raises:
            Unavailable: it cannot be found out now; the call can be repeated.
        """

    @abstractmethod
    async def clean(self, job: str, *, paused: bool = False) -> None:
        """End what still runs of a job that is over, and delete what its workers left behind.

        Args:
            job: its uid.
            paused: whether it goes on later: what its workers have kept for their successors may stay then, the files
                in its scratch directory whose names begin with `worker.names.KEPT`.
        """

    @abstractmethod
    async def sweep(self, jobs: Collection[str]) -> None:
        """End the workers and delete the files of every job of this service but these (uids): it is over or deleted."""

    async def close(self) -> None:  # noqa: B027
        """Let go of what this process holds, when it ends; the workers go on."""
