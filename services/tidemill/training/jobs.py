"""A job, and the only ways in which it changes its state.

PENDING ──► STARTING ──► RUNNING ──► FINISHING ──► SUCCEEDED
   │            │           │            │
   │            ├───────────┴────────────┼───────► FAILED
   │            │                        │
   │            └──► CANCELLING ◄────────┘
   ▼                     │
CANCELLED ◄──────────────┘

STARTING, RUNNING ──► PAUSING ──► PAUSED ──► PENDING. PENDING becomes PAUSED at once, and PAUSED is cancelled at once;
of PAUSING can become all that can become of RUNNING.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from tidemill.errors import FailedPrecondition, invalid
from tidemill.training.epochs import Epoch, Result
from tidemill.training.spec import JobSpec

MAX_ERROR = 4096
"""Longest error text in characters."""
MAX_TRACEBACK = 8192
"""Longest traceback of a worker in bytes."""
MAX_CHANGES = 256
"""Most changes of its state that a job remembers."""
MAX_SHARDS = 64
"""Most parameter shards of a job."""
MAX_WORKERS = 64
"""Most workers of a job."""


class State(Enum):
    """What a job is doing."""

    PENDING = "pending"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    FINISHING = "finishing"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


NEXT: Mapping[State, frozenset[State]] = MappingProxyType(
    {
        State.PENDING: frozenset({State.STARTING, State.PAUSED, State.CANCELLED}),
        State.STARTING: frozenset({State.RUNNING, State.PAUSING, State.CANCELLING, State.FAILED}),
        State.RUNNING: frozenset({State.FINISHING, State.PAUSING, State.CANCELLING, State.FAILED}),
        State.PAUSING: frozenset({State.PAUSED, State.FINISHING, State.CANCELLING, State.FAILED}),
        State.PAUSED: frozenset({State.PENDING, State.CANCELLED}),
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
class Change:
    """A change of a job's state."""

    number: int
    """Among the changes of the job, from 1."""
    state: State
    """From then on."""
    time: float
    epochs: int = 0
    """Epochs that were finished before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """The copy of a replicated parameter shard that goes on alone."""

    shard: int
    """Position among the shards of the job's group."""
    term: int = 0
    """Times that a copy of it was given up; 0 = never, both count."""
    copy: int = 0
    """0 = the first, 1 = the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """Other numbers of workers and shards, that a job at work is to have."""

    workers: int
    shards: int
    """0 = its strategy has none."""
    places: tuple[str, ...] = ()
    """Addresses of the shards that its group goes to; none as long as they are not chosen."""

    @property
    def is_ready(self) -> bool:
        """Whether it is known where the job is to go."""
        return len(self.places) == self.shards


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
    finished: int = field(default=-1, compare=False)
    """Number of epochs when it was stored; -1 = not known."""
    changes: tuple[Change, ...] = ()
    """The states that it was in, in order, this one last; none when it is of an older release."""
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
    copies: tuple[Copy, ...] = ()
    """Of its replicated shards, those whose other copy was given up, in order of shard."""
    placement: int = 0
    """Number of times that its group has been given up, to be made anew elsewhere."""
    resize: Resize | None = None
    """The change of workers and shards that is being made."""
    checkpoint: str = ""
    """Digest of the artifact from which the training goes on when its state is held nowhere any more."""
    checkpoint_step: int = 0
    """Steps that are done in it."""
    checkpoint_samples: int = 0
    """Samples that were used for them."""
    held: bool = False
    """While it is being paused: all that must be kept is kept, its workers may end."""
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
        """Name of its parameter group, different for every job there ever was, and wherever it is placed anew."""
        again = f".{self.placement}" if self.placement else ""
        return f"groups/{self.id[:80]}-{self.uid}{again}"

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
    before = job.changes or begun(job)
    change = Change(number=before[-1].number + 1, state=state, time=now, epochs=len(job.epochs))
    changes = (*before, change)[-MAX_CHANGES:]
    return replace(job, state=state, ended=ended, waiting="", error=shortened(error), changes=changes)


def begun(job: Job) -> tuple[Change, ...]:
    """The changes of a job of which none are known but that it is in its state."""
    time = job.ended or job.started or job.created
    return (Change(number=1, state=job.state, time=time, epochs=len(job.epochs) if job.is_over else 0),)


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
    at_rest = job.state in (State.PENDING, State.PAUSED)
    return move(job, State.CANCELLED if at_rest else State.CANCELLING, now)


def pause(job: Job, now: float) -> Job:
    """`job` after it was asked to pause; itself when that changes nothing.

    Raises:
        FailedPrecondition: reason JOB_NOT_PAUSABLE: it is at its end, or has ended.
    """
    if job.state in (State.PAUSING, State.PAUSED):
        return job
    if job.state is State.PENDING:
        return move(job, State.PAUSED, now)
    if State.PAUSING not in NEXT[job.state]:
        why = "its training is over, it ends by itself" if job.state is State.FINISHING else "there is nothing to pause"
        raise FailedPrecondition(
            f"{job.name} is {job.state.value}: {why}",
            reason="JOB_NOT_PAUSABLE",
            metadata={"job": job.name, "state": job.state.value},
        )
    # Workers that have only just begun would do the same again, and who goes back to a checkpoint has it: there is
    # nothing else to keep.
    nowhere = job.spec.shards > 0 and not job.shards
    return replace(move(job, State.PAUSING, now), held=job.state is State.STARTING or nowhere)


def resume(job: Job, shards: int, now: float) -> Job:
    """`job` after it was asked to go on; itself when it has not been paused, or goes on already.

    Args:
        job: as it is.
        shards: number of parameter shards to go on with; 0 = as many as before.
        now: the time.

    Raises:
        FailedPrecondition: reason JOB_PAUSING, when it is not at rest yet; JOB_NOT_PAUSED, when it has ended, or is at
            work with another number of shards.
        Invalid: it has no parameter shards, or cannot have so many.
    """
    if shards and not job.spec.shards:
        raise invalid("shards", f"{job.spec.strategy} has no parameter shards", reason="NO_SHARDS")
    if not 0 <= shards <= MAX_SHARDS:
        raise invalid("shards", f"must be in [0, {MAX_SHARDS}], not {shards}")
    if job.state is State.PAUSING:
        raise FailedPrecondition(
            f"{job.name} is still being paused: wait until it is paused",
            reason="JOB_PAUSING",
            metadata={"job": job.name},
        )
    if job.state is not State.PAUSED:
        if job.is_over or job.state is State.CANCELLING or shards not in (0, job.spec.shards):
            raise FailedPrecondition(
                f"{job.name} is {job.state.value}, not paused",
                reason="JOB_NOT_PAUSED",
                metadata={"job": job.name, "state": job.state.value},
            )
        return job
    spec = replace(job.spec, shards=shards or job.spec.shards)
    return replace(move(job, State.PENDING, now), spec=spec, waiting="waits for its turn")


def resize(job: Job, workers: int, shards: int) -> Job:
    """`job` after it was asked for other numbers of workers and shards; itself when it has them, or is about to.

    Args:
        job: as it is.
        workers: number of workers; 0 = as many as now.
        shards: number of parameter shards; 0 = as many as now.

    Raises:
        FailedPrecondition: reason JOB_RESIZING, another change is being made; JOB_NOT_RESIZABLE, it is too late or too
            early for one.
        Invalid: it cannot have so many.
    """
    if shards and not job.spec.shards:
        raise invalid("shards", f"{job.spec.strategy} has no parameter shards", reason="NO_SHARDS")
    if not 0 <= shards <= MAX_SHARDS:
        raise invalid("shards", f"must be in [0, {MAX_SHARDS}], not {shards}")
    if not 0 <= workers <= MAX_WORKERS:
        raise invalid("workers", f"must be in [0, {MAX_WORKERS}], not {workers}")
    wanted = Resize(workers=workers or job.spec.workers, shards=shards or job.spec.shards)
    facts = {"job": job.name, "state": job.state.value}
    if job.resize is not None:
        if (job.resize.workers, job.resize.shards) == (wanted.workers, wanted.shards):
            return job
        raise FailedPrecondition(
            f"{job.name} is getting {job.resize.workers} workers and {job.resize.shards} shards: wait for that",
            reason="JOB_RESIZING",
            metadata=facts,
        )
    if (wanted.workers, wanted.shards) == (job.spec.workers, job.spec.shards):
        return job
    if job.state in (State.STARTING, State.RUNNING):
        return replace(job, resize=wanted)
    still = job.spec.consistency.rounds or wanted.workers == job.spec.workers or not job.checkpoint_step
    if job.state in (State.PENDING, State.PAUSED) and still:
        return replace(job, spec=replace(job.spec, workers=wanted.workers, shards=wanted.shards))
    why = "its workers were at different steps" if job.state in (State.PENDING, State.PAUSED) else "it is too late"
    raise FailedPrecondition(
        f"{job.name} is {job.state.value}: {why} to change them", reason="JOB_NOT_RESIZABLE", metadata=facts
    )


def resized(job: Job) -> Job:
    """`job`, whose state is kept as its checkpoint, with the workers and shards that were asked for."""
    assert job.resize is not None
    wanted = job.resize
    return replace(
        job,
        spec=replace(job.spec, workers=wanted.workers, shards=wanted.shards),
        shards=wanted.places,
        copies=(),
        placement=job.placement + 1,
        resize=None,
        waiting="",
    )


def hold(job: Job, now: float) -> Job:
    """`job`, whose workers have ended, at rest: its group is given up, its checkpoint is what it goes on from.

    A change of workers and shards that was being made is made with it, or where its workers stand at different steps of
    its shards alone.
    """
    rest = replace(move(given_up(job), State.PAUSED, now), owner="", resize=None)
    if job.resize is None:
        return rest
    workers = job.resize.workers if job.spec.consistency.rounds else job.spec.workers
    return replace(rest, spec=replace(job.spec, workers=workers, shards=job.resize.shards))


def given_up(job: Job) -> Job:
    """`job`, whose workers have ended, without its parameter group: it is to go on from its checkpoint."""
    progress = replace(job.progress, step=job.checkpoint_step, samples=job.checkpoint_samples, samples_per_second=0.0)
    workers = tuple(replace(worker, pid=0, handle="", token="", phase="ended", samples=0) for worker in job.workers)
    return replace(
        job,
        shards=(),
        copies=(),
        placement=job.placement + 1,
        progress=progress,
        workers=workers,
        held=False,
        waiting="",
        resize=None if job.resize is None else replace(job.resize, places=()),
    )


def shortened(text: str, limit: int = MAX_ERROR) -> str:
    """`text` of at most `limit` characters: its beginning and its end."""
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]}\n…\n{text[-half:]}"
