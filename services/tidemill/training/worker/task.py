"""A worker's orders, and what it needs of others to carry them out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tidemill.training.epochs import Epoch, Result
from tidemill.training.spec import JobSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A worker's orders."""

    job: str
    """`jobs/{job}`."""
    spec: JobSpec
    """What to train, every default filled in."""
    rank: int
    attempt: int
    """Times this rank was replaced."""
    group: str
    shards: tuple[str, ...]
    traceparent: str
    artifacts: str
    """Address of the artifact service."""
    epochs: tuple[Epoch, ...]
    """What was finished by workers before."""
    checkpoint: str = ""
    """Digest of what rank 0 puts into a new parameter group; "" = it begins from the start."""
    placement: int = 0
    """Number of the group among those that the job has had."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What the training service makes of a finished epoch."""

    stop: bool
    best_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the training service says to a sign of life."""

    stop: bool
    """Whether to end at once."""
    generation: int = 0
    """The latest meeting of the job's workers; 0 = none."""
    pause: bool = False
    """Whether to end after this step, and to keep what the training is made of if that is for this worker to do."""
    move: bool = False
    """Whether to keep what the training is made of where all workers stand still, and to report it as moved."""
    placement: int = 0
    """Number of the job's group: who has orders of an earlier one needs new ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the workers of a job meet."""

    generation: int
    """Number of the meeting, from 1."""
    address: str
    """Where rank 0 awaits the others, `host:port`; "" = not known yet."""
    checkpoint: str
    """Digest of the last checkpoint; "" = there is none."""


class Coordinator(Protocol):
    """The training service, as a worker sees it. Errors are those of `tidemill.errors`."""

    def task(self) -> Task:
        """The worker's orders as they are now."""

    def beat(
        self, phase: str, *, step: int, steps_per_epoch: int, loss: float, samples: int, generation: int
    ) -> Answer:
        """Give a sign of life."""

    def meet(self, *, lost: int, address: str) -> Place:
        """Ask where to meet the others.

        Args:
            lost: meeting that this worker has left; 0 = none.
            address: where rank 0 awaits the others; "" from all others.
        """

    def choose_copy(self, shard: int, term: int, copy: int) -> tuple[int, int]:
        """The term in force and the copy of a replicated shard that counts: `copy` if `term` is the next one."""

    def report_checkpoint(self, checkpoint: str, step: int, *, paused: bool = False, moved: bool = False) -> None:
        """Hand in from where workers go on after a restart; the same again changes nothing.

        Args:
            checkpoint: digest; "" = from the start, at step 0.
            step: steps that are done in it.
            paused: whether this worker goes no further.
            moved: whether it goes on by new orders.
        """

    def report_epoch(self, epoch: Epoch) -> Decision:
        """Hand in a finished epoch; the same again changes nothing."""

    def report_result(self, result: Result) -> None:
        """Hand in the result; the same again changes nothing."""

    def report_failure(
        self, error: str, *, final: bool, step: int, traceback: str = "", group_lost: bool = False
    ) -> None:
        """Say why the worker cannot go on."""


class ArtifactStore(Protocol):
    """The artifact service, as a worker sees it. Errors are those of `tidemill.errors`."""

    def fetch(self, digest: str, folder: Path) -> Mapping[str, Path]:
        """The files of an artifact, verified, by name; they lie in `folder`."""

    def keep(self, kind: str, files: Mapping[str, Path], labels: Mapping[str, str], reference: str) -> str:
        """Store files as an artifact that `reference` needs; its digest."""


SignatureWriter = Callable[[str, tuple[int, ...], tuple[str, ...]], str]
"""(element type, sample shape, labels) -> what the exported model takes and gives, as JSON."""
