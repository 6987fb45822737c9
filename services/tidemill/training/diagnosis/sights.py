"""A job's workers, shards and meeting, as they are seen at one moment."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from tidemill.training.jobs import Job


class Condition(Enum):
    """How a worker is."""

    UNKNOWN = "unknown"
    """Another service looks after it, or nobody needs to any more."""
    ABSENT = "absent"
    """There is no process yet."""
    STARTING = "starting"
    """It runs and was not heard of yet."""
    ALIVE = "alive"
    SILENT = "silent"
    """It runs and gives no more signs of life."""
    ENDED = "ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSight:
    """One worker; times in seconds until now, None = not known here."""

    rank: int
    attempt: int = 0
    condition: Condition = Condition.UNKNOWN
    phase: str = ""
    step: int = 0
    pid: int = 0
    silence: float | None = None
    """Since its last sign of life, or its start when there was none."""
    at_step: float | None = None
    """Since it came to its step, or its phase."""
    pace: float = 0.0
    """Seconds that its steps take; 0 = not known."""
    waits_for: str = ""
    """What the shards know of that."""
    in_flight: int = 0
    """Bytes that it is pushing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberSight:
    """A worker as one shard knows it."""

    worker: int
    attempt: int = 0
    clock: int = 0
    """The step that its next push is for."""
    waits_for: str = ""
    in_flight: int = 0
    seen: float = 0.0
    """When it was last heard of there, seconds since the epoch; 0 = never."""
    dropped: int = 0
    """Pushes that came when their round had closed without them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSight:
    """One shard of a job's parameter group."""

    address: str
    reachable: bool = True
    error: str = ""
    """Why it does not answer, or not what was asked."""
    has_part: bool = False
    """Whether it has its part of the group."""
    is_ready: bool = False
    """Whether that has values."""
    mode: str = "bsp"
    spares: int = 0
    """Workers without which a round closes, if the others have pushed; rank 0 is none of them."""
    version: int = 0
    arrived: tuple[int, ...] = ()
    members: tuple[MemberSight, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeetingSight:
    """The meeting of workers that talk to each other."""

    generation: int
    present: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    is_open: bool = False
    """Whether rank 0 has said where it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamSight:
    """What the service that looks after the workers knows of them."""

    workers: tuple[WorkerSight, ...] = ()
    meeting: MeetingSight | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All that is known of a job at one moment."""

    job: Job
    workers: tuple[WorkerSight, ...] = ()
    shards: tuple[ShardSight, ...] = ()
    meeting: MeetingSight | None = None
    before: tuple[str, ...] = ()
    """Names of the jobs that come before it while it waits for its turn."""
    now: float = 0.0
    """This moment, seconds since the epoch."""
    positions: dict[int, int] = field(init=False)
    """Step that each rank is at, by what is known of it where most is known."""

    def __post_init__(self) -> None:
        clocks = {worker.rank: worker.step for worker in self.workers}
        # Shards that do without a worker know no more of it than where the others are.
        gone = (Condition.SILENT, Condition.ENDED) if any(shard.spares for shard in self.shards) else ()
        left = {worker.rank for worker in self.workers if worker.condition in gone}
        for rank, known in _by_rank(self.shards).items():
            if rank not in left:
                clocks[rank] = max(clocks.get(rank, 0), min(member.clock for member in known))
        object.__setattr__(self, "positions", clocks)
        workers = [replace(worker, step=clocks[worker.rank]) for worker in joined(self.workers, self.shards)]
        object.__setattr__(self, "workers", tuple(workers))


def joined(workers: Iterable[WorkerSight], shards: Sequence[ShardSight]) -> list[WorkerSight]:
    """The workers with what the shards know of them."""
    known = _by_rank(shards)
    return [
        replace(
            worker,
            waits_for="; ".join(dict.fromkeys(m.waits_for for m in known.get(worker.rank, ()) if m.waits_for)),
            in_flight=sum(member.in_flight for member in known.get(worker.rank, ())),
        )
        for worker in workers
    ]


def _by_rank(shards: Iterable[ShardSight]) -> dict[int, list[MemberSight]]:
    found: dict[int, list[MemberSight]] = {}
    for shard in shards:
        for member in shard.members:
            found.setdefault(member.worker, []).append(member)
    return found
