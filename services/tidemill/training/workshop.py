"""What all jobs at work share, and what a worker's token stands for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from opentelemetry import trace

from tidemill.clock import Clock
from tidemill.training.changes import Changes
from tidemill.training.counters import Counters
from tidemill.training.crew import Patience
from tidemill.training.epochs import Epoch, Result
from tidemill.training.jobs import Copy
from tidemill.training.launchers.base import Launcher
from tidemill.training.logs import LogDirectory
from tidemill.training.meter import Beat
from tidemill.training.peers import Artifacts, Shards
from tidemill.training.placement import Placement
from tidemill.training.registration import Registration
from tidemill.training.store import JobStore
from tidemill.training.tokens import Tokens
from tidemill.training.worker.task import Answer, Decision, Place, Task


class Employer(Protocol):
    """The job at work that a worker belongs to. Every method raises Stale when another process has the rank now."""

    def task(self, rank: int, attempt: int) -> Task:
        """The worker's orders."""

    async def beat(self, rank: int, attempt: int, beat: Beat) -> Answer:
        """Take a sign of life."""

    async def meet(self, rank: int, attempt: int, *, lost: int, address: str) -> Place:
        """Where the worker meets the others."""

    async def choose_copy(self, rank: int, attempt: int, wanted: Copy) -> Copy:
        """The copy of a shard that counts, which is the wanted one if its term is the next."""

    async def report_checkpoint(
        self, rank: int, attempt: int, checkpoint: str, step: int, *, paused: bool = False, moved: bool = False
    ) -> None:
        """Take note of from where to go on, once; who is `paused` goes no further, who has `moved` has new orders."""

    async def report_epoch(self, rank: int, attempt: int, epoch: Epoch) -> Decision:
        """Take the metrics of an epoch, once; whether to train on."""

    async def report_result(self, rank: int, attempt: int, result: Result) -> None:
        """Take the result, once."""

    def report_failure(
        self,
        rank: int,
        attempt: int,
        error: str,
        *,
        final: bool,
        step: int,
        traceback: str = "",
        group_lost: bool = False,
    ) -> None:
        """Take note of why a worker cannot go on."""


@dataclass(frozen=True, slots=True)
class Seat:
    """What a token stands for: one process that has, or had, a rank of a job."""

    employer: Employer
    rank: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Workshop:
    """What every job at work needs."""

    owner: str
    """Name of this orchestrator, of its own for every start."""
    store: JobStore
    changes: Changes
    logs: LogDirectory
    tokens: Tokens[Seat]
    launcher: Launcher
    shards: Shards
    artifacts: Artifacts
    placement: Placement
    registration: Registration
    environment: Callable[[], Mapping[str, str]]
    """Variables that every worker gets."""
    patience: Patience
    group_patience: float
    """Seconds to wait for the shards of a job that is taken up again."""
    grace: float
    clock: Clock
    tracer: trace.Tracer
    counters: Counters
