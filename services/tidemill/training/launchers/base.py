"""What a launcher is: it starts the worker processes of jobs, hands on what they print, and ends them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

MAX_LINE = 8192
"""Longest line handed on, in characters; what is longer is broken up."""

Output = Callable[[str], None]
"""Takes one line that a worker has printed, without its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What every launcher is told."""

    command: tuple[str, ...]
    """Program and arguments of a worker; never a shell's."""
    threads: int
    """Threads that a worker's numerical libraries may use."""
    grace: float
    """Seconds between asking a worker to end and killing it."""
    scratch: Path
    """Directory for what workers write; what is left there after a job is deleted."""


class Process(ABC):
    """A worker that was started, with all the processes that it starts itself."""

    @property
    @abstractmethod
    def pid(self) -> int:
        """Its process id, on the host where it runs."""

    @abstractmethod
    async def wait(self) -> int:
        """Its exit status, once it has ended and all of its output was handed on; -n when signal n killed it."""

    @abstractmethod
    async def stop(self, grace: float | None = None) -> None:
        """Ask it to end, kill it after `grace` seconds (default: the settings'), and return when it is gone."""


class Launcher(ABC):
    """Starts workers. A worker must not outlive the launcher's process: its standard input reaches its end then."""

    @abstractmethod
    def __init__(self, settings: Settings) -> None:
        """A launcher of these settings."""

    @abstractmethod
    async def launch(self, job: str, environment: Mapping[str, str], output: Output) -> Process:
        """Start one worker.

        Args:
            job: uid of the job, for its scratch directory.
            environment: variables for this worker, beside those it needs to run at all.
            output: takes its lines.

        Raises:
            FailedPrecondition: reason LAUNCH_FAILED, when it would fail again.
            Unavailable: reason LAUNCH_FAILED, when it may succeed later.
        """

    @abstractmethod
    async def clean(self, job: str) -> None:
        """Delete what the workers of a job, all of which have ended, left behind; "" = those of every job."""
