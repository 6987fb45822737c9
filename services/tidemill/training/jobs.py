"""A job, and the only ways in which it changes its state.

PENDING ──► STARTING ──► RUNNING ──► FINISHING ──► SUCCEEDED
   │            │           │            │
   │            ├───────────┴────────────┼───────► FAILED
   │            │                        │
   │            └──► CANCELLING ◄────────┘
   ▼                     │
CANCELLED ◄──────────────┘
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from tidemill.errors import FailedPrecondition
from tidemill.training.epochs import Epoch, Result
from tidemill.training.spec import JobSpec

MAX_ERROR = 4096
"""Longest error text in characters."""
MAX_TRACEBACK = 8192
"""Longest traceback of a worker in bytes."""


class State(Enum):
    """What a job is doing."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    FINISHING = "finishing"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


NEXT: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.PENDING: frozenset({State.STARTING, State.CANCELLED}),
        State.STARTING: frozenset({State.RUNNING, State.CANCELLING, State.FAILED}),
        State.RUNNING: frozenset({State.FINISHING, State.CANCELLING, State.FAILED}),
        State.FINISHING: frozenset({State.SUCCEEDED, State.CANCELLING, State.FAILED}),
        State.CANCELLING: frozenset({State.CANCELLED}),
        State.SUCCEEDED: frozenset(),
        State.FAILED: frozenset(),
        State.CANCELLED: frozenset(),
    }
)
"""The states that may follow each state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a job is."""

    epoch: int = 0
    epochs: int = 0
    step: int = 0
    steps_per_epoch: int = 0
    samples: int = 0
    loss: float = 0.0
    samples_per_second: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """One worker process."""

    rank: int
    attempt: int = 0
    pid: int = 0
    step: int = 0
    heartbeat: float = 0.0
    """Time of the last sign of life, seconds since the epoch; 0 = none yet."""
    phase: str = ""
    samples: int = 0
    """Used since it started; part of the progress of the job."""
    handle: str = ""
    """By which its launcher finds it again; stored before it is started. "" = it cannot be found again."""
    token: str = ""
    """Digest of its secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training job as it is stored; times are seconds since the epoch, 0 = not yet."""

    id: str
    uid: str
    """Tells this job from an earlier one of the same id."""
    spec: JobSpec
    state: State = State.PENDING
    error: str = ""
    traceback: str = ""
    """Where the code of the worker was that made it fail."""
    waiting: str = ""
    progress: Progress = field(default_factory=Progress)
    epochs: tuple[Epoch, ...] = ()
    result: Result | None = None
    workers: tuple[Worker, ...] = ()
    restarts: int = 0
    traceparent: str = ""
    created: float = 0.0
    started: float = 0.0
    ended: float = 0.0
    owner: str = ""
    """The orchestrator that acts on it; what another one still does on it is void."""
    shards: tuple[str, ...] = ()
    """Addresses of the parameter shards that hold its group."""
    checkpoint: str = ""
    """Digest of the artifact from which workers go on that hold the state of the training themselves."""
    checkpoint_step: int = 0
    """Steps that are done in it."""
    committed: bool = False
    """Its version is being registered: from here on it cannot be cancelled."""
    nonce: str = ""
    """Of the owner's last change, so that it knows its own."""
    request: str = ""
    """Key of the request that created it, if that is to be remembered."""
    fingerprint: str = ""
    """Digest of what that request asked for."""
    revision: int = 0
    """Store revision of the last change."""

    @property
    def name(self) -> str:
        """Its resource name."""
        return f"jobs/{self.id}"

    @property
    def group(self) -> str:
        """Name of its parameter group, different for every job there ever was."""
        return f"groups/{self.id[:80]}-{self.uid}"

    @property
    def is_over(self) -> bool:
        """Whether it is in a state that it does not leave."""
        return not NEXT[self.state]


def move(job: Job, state: State, now: float, *, error: str = "") -> Job:
    """`job` in the state that follows.

    Args:
        job: as it is.
        state: where it goes.
        now: the time, for `ended`.
        error: why it failed.

    Raises:
        FailedPrecondition: reason ILLEGAL_TRANSITION, when `state` may not follow its state.
    """
    if state not in NEXT[job.state]:
        raise FailedPrecondition(
            f"{job.name} is {job.state.value}: it cannot become {state.value}",
            reason="ILLEGAL_TRANSITION",
            metadata={"job": job.name, "state": job.state.value, "wanted": state.value},
        )
    ended = 0.0 if NEXT[state] else now
    return replace(job, state=state, ended=ended, waiting="", error=shortened(error))


def cancel(job: Job, now: float) -> Job:
    """`job` after it was asked to stop; itself when that changes nothing.

    Raises:
        FailedPrecondition: reason JOB_COMMITTED, when its version is being registered.
    """
    if job.is_over or job.state is State.CANCELLING:
        return job
    if job.committed:
        raise FailedPrecondition(
            f"{job.name} registers its version already and ends by itself",
            reason="JOB_COMMITTED",
            metadata={"job": job.name},
        )
    return move(job, State.CANCELLED if job.state is State.PENDING else State.CANCELLING, now)


def shortened(text: str, limit: int = MAX_ERROR) -> str:
    """`text` of at most `limit` characters: its beginning and its end."""
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]}\n…\n{text[-half:]}"
