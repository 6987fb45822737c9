"""One sentence on what a job waits for: the first rule that knows a cause says it, the gravest come first."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tidemill.training.diagnosis.sights import Case, Condition, ShardSight, WorkerSight
from tidemill.training.jobs import State

PATIENCE = 5.0
"""Shortest time at one step, in seconds, after which a worker counts as slow."""
USUAL = 5.0
"""That many times as long as usual a step must take before its worker counts as slow."""
START = 30.0
"""Seconds that a worker's start, or its first step, may take before something must be wrong."""
FRESH = 2.0
"""Seconds within which a worker that makes quick steps has told of another one: signs of life come each second."""
_TRAINING = (State.STARTING, State.RUNNING, State.PAUSING)
_UNSEEN = (Condition.SILENT, Condition.ENDED, Condition.ABSENT, Condition.STARTING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a job waits for."""

    text: str
    """A sentence of which the job is the subject."""
    is_stuck: bool = False
    """Whether something is wrong that the job does not get over by working."""
    culprits: tuple[int, ...] = ()
    """Ranks that hold up the others."""


def judge(case: Case) -> Verdict:
    """What the job of `case` waits for and who holds up the others."""
    for rule in _RULES:
        verdict = rule(case)
        if verdict is not None:
            return verdict
    return _well(case)


def _over(case: Case) -> Verdict | None:
    job = case.job
    if job.state is State.SUCCEEDED:
        return Verdict(text="has succeeded: it waits for nothing")
    if job.state is State.CANCELLED:
        return Verdict(text="was cancelled: it waits for nothing")
    if job.state is State.FAILED:
        return Verdict(text=f"has failed: {job.error.strip().partition(chr(10))[0]}")
    return None


def _at_rest(case: Case) -> Verdict | None:
    job = case.job
    if job.state is State.PAUSED:
        return Verdict(text="is paused, and waits to be resumed")
    if job.state is not State.PENDING:
        return None
    if not case.before:
        return Verdict(text="waits to be taken up by the training service that leads")
    first, rest = case.before[0], len(case.before) - 1
    more = f" and {rest} more jobs" if rest > 1 else " and another job" if rest else ""
    return Verdict(text=f"waits for its turn: {first}{more} {'come' if rest else 'comes'} before it")


def _wanting(case: Case) -> Verdict | None:
    """It has not got what its workers need."""
    job = case.job
    if job.state is not State.STARTING or not job.spec.shards or job.shards:
        return None
    if job.waiting:
        return Verdict(text=job.waiting, is_stuck=True)
    return Verdict(text="is being prepared: shards for its parameters are being chosen")


def _ending(case: Case) -> Verdict | None:
    job = case.job
    if job.state is State.FINISHING and job.result is not None:
        return Verdict(text="waits for its version to be registered; should that take long, its log says why")
    if job.state is State.PAUSING and job.held:
        return Verdict(text="is being paused: all that it is made of is kept, and its workers end")
    if job.state is not State.CANCELLING:
        return None
    running = [worker.rank for worker in case.workers if worker.pid]
    if not running:
        return Verdict(text="is being cancelled")
    return Verdict(text=f"is being cancelled, and waits for {_ranks(running)} to end", culprits=tuple(running))


def _unreachable(case: Case) -> Verdict | None:
    gone = [shard for shard in case.shards if not shard.reachable]
    if not gone or not _trains(case):
        return None
    verb = "does" if len(gone) == 1 else "do"
    text = f"{_despite(case)} {_places(gone)}, which {verb} not answer"
    return Verdict(text=text + _where(case, _ranks_of(case)), is_stuck=not _advances(case))


def _lost(case: Case) -> Verdict | None:
    """Shards that answer, and have nothing of the job although its workers train."""
    empty = [shard for shard in case.shards if shard.reachable and not shard.is_ready]
    if not empty or not _trains(case) or _is_beginning(case):
        return None
    has = "has" if len(empty) == 1 else "have"
    what = "no values of its parameters" if all(shard.has_part for shard in empty) else "no part of its parameters"
    text = f"{_despite(case)} {_places(empty)}, which {has} {what}: they were lost there, or never came"
    return Verdict(text=text + _where(case, _ranks_of(case)), is_stuck=not _advances(case))


def _despite(case: Case) -> str:
    return "goes on without" if _advances(case) else "waits for"


def _is_beginning(case: Case) -> bool:
    """Whether rank 0 may still be about to create the group."""
    first = next((worker for worker in case.workers if worker.rank == 0), None)
    is_early = first is None or first.condition is not Condition.ALIVE or first.phase == "starting"
    return is_early and not any(case.positions.values())


def _unseen(case: Case) -> Verdict | None:
    """Workers that are needed and do not live."""
    found = [worker for worker in _needed(case) if worker.condition in _UNSEEN]
    if not found:
        return None
    found.sort(key=lambda worker: (_UNSEEN.index(worker.condition), worker.rank))
    free = any(shard.mode == "asp" for shard in case.shards) and len(found) < len(_needed(case))
    free = free or _are_spared(case, [worker.rank for worker in found])
    alike: dict[str, list[int]] = {}
    for worker in found:
        alike.setdefault(_state(case, worker), []).append(worker.rank)
    named = " and ".join(f"{_ranks(same)}, {state}" for state, same in alike.items())
    ranks = tuple(sorted(worker.rank for worker in found))
    starting = all(worker.condition in (Condition.STARTING, Condition.ABSENT) for worker in found)
    is_stuck = not starting or any((worker.silence or 0.0) > START for worker in found)
    text = f"{'goes on without' if free else 'waits for'} {named}" + _where(case, _others(case, ranks))
    return Verdict(text=text, is_stuck=is_stuck and not free, culprits=ranks)


def _state(case: Case, worker: WorkerSight) -> str:
    step = f"at step {case.positions[worker.rank]}"
    if worker.condition is Condition.SILENT:
        return f"last heard of {_seconds(worker.silence)} ago, {step}"
    if worker.condition is Condition.ENDED:
        return f"whose process has ended {step} and is to be replaced"
    if worker.condition is Condition.ABSENT:
        return "whose process is not started yet"
    return f"started {_seconds(worker.silence)} ago and not heard of yet"


def _apart(case: Case) -> Verdict | None:
    """Workers that have not come to the meeting of all."""
    meeting = case.meeting
    if meeting is None or not meeting.missing or not _trains(case):
        return None
    missing = [worker for worker in case.workers if worker.rank in meeting.missing]
    there = f"; {_ranks(meeting.present)} {_are(meeting.present)} there" if meeting.present else "; nobody is there"
    named = " and ".join(f"worker {w.rank} ({w.phase or 'unheard of'})" for w in missing) or _ranks(meeting.missing)
    verb = "has" if len(meeting.missing) == 1 else "have"
    late = [worker.at_step for worker in missing if worker.at_step is not None]
    return Verdict(
        text=f"waits for {named}, which {verb} not come to meeting {meeting.generation} of its workers{there}",
        is_stuck=bool(late) and max(late) > START,
        culprits=meeting.missing,
    )


def _slow(case: Case) -> Verdict | None:
    """Workers that the others wait for, and who take long."""
    laggards = _laggards(case)
    slow = [worker for worker in case.workers if worker.rank in laggards and _is_late(worker)]
    if not slow or not _trains(case):
        return None
    ranks = tuple(worker.rank for worker in slow)
    named = " and ".join(f"worker {worker.rank}, {_delay(case, worker)}" for worker in slow)
    is_stuck = any(worker.phase == "training" for worker in slow)  # measuring and exporting take what they take
    return Verdict(text=f"waits for {named}" + _where(case, _others(case, ranks)), is_stuck=is_stuck, culprits=ranks)


def _delay(case: Case, worker: WorkerSight) -> str:
    where = f"{worker.phase or 'at work'} at step {case.positions[worker.rank]} for {_seconds(worker.at_step)}"
    usual = f" (its steps take {_seconds(worker.pace)})" if worker.pace else ""
    behind = [shard for shard in case.shards if _clock(shard, worker.rank) == case.positions[worker.rank]]
    missing = f", whose push has not all come to {_places(behind)}" if 0 < len(behind) < len(case.shards) else ""
    flying = f", {worker.in_flight} bytes of its push under way" if worker.in_flight else ""
    return f"{where}{usual}{missing}{flying}"


def _still(case: Case) -> Verdict | None:
    """Nobody makes a step, and nobody is to blame more than the others."""
    needed = [worker for worker in _needed(case) if worker.phase == "training"]
    if not needed or len(needed) < len(_needed(case)) or not all(_is_late(worker) for worker in needed):
        return None
    shortest = min(worker.at_step or 0.0 for worker in needed)
    text = f"has not made a step for {_seconds(shortest)}" + _where(case, _ranks_of(case))
    waits = dict.fromkeys(worker.waits_for for worker in needed if worker.waits_for)
    return Verdict(text=text + (f"; they wait for {'; '.join(waits)}" if waits else ""), is_stuck=True)


def _elsewhere(case: Case) -> Verdict | None:
    """Another service hears the workers: what the shards know must do."""
    if not _trains(case) or not case.workers or any(w.condition is not Condition.UNKNOWN for w in case.workers):
        return None
    laggards = _laggards(case)
    if not laggards:
        text = "is in the hands of another training service, which alone hears its workers"
        return Verdict(text=text + _where(case, _ranks_of(case)))
    ages = {rank: _age(case, rank) for rank in laggards}
    named = " and ".join(f"worker {rank}, {_met(age)}, at step {case.positions[rank]}" for rank, age in ages.items())
    return Verdict(
        text=f"waits for {named}" + _where(case, _others(case, laggards)),
        is_stuck=any(age is None or age > START for age in ages.values()),
        culprits=laggards,
    )


def _age(case: Case, rank: int) -> float | None:
    """Seconds since some shard has heard of a worker; None = none ever has."""
    seen = [member.seen for shard in case.shards for member in shard.members if member.worker == rank and member.seen]
    return max(0.0, case.now - max(seen)) if seen else None


def _met(age: float | None) -> str:
    return "of which no shard has heard yet" if age is None else f"of which shards last heard {_seconds(age)} ago"


def _well(case: Case) -> Verdict:
    job = case.job
    if job.state is State.FINISHING:
        first = next((worker for worker in case.workers if worker.rank == 0), None)
        phase = first.phase if first and first.phase else "at work"
        since = f", for {_seconds(first.at_step)}" if first and first.at_step is not None else ""
        return Verdict(text=f"is not stuck: its training is over, and worker 0 is {phase}{since}")
    total = job.progress.steps_per_epoch * job.progress.epochs
    of = f" of {total}" if total else ""
    laggards = _laggards(case)
    now = f"; at this moment the others wait for {_ranks(laggards)}" if laggards else ""
    if not any(case.positions.values()):
        phases = sorted({worker.phase for worker in case.workers if worker.phase})
        return Verdict(text="is not stuck: its workers are " + (" and ".join(phases) or "being started") + now)
    where = _where(case, _ranks_of(case)).removeprefix("; ")
    return Verdict(
        text=f"is not stuck: {where}{of if len(set(case.positions.values())) == 1 else ''}{now}{_dropped(case)}"
    )


_RULES: Sequence[Callable[[Case], Verdict | None]] = (
    *(_over, _at_rest, _wanting, _ending, _unreachable, _lost, _elsewhere, _unseen, _apart, _slow, _still),
)
"""In the order of their gravity."""


def _trains(case: Case) -> bool:
    return case.job.state in _TRAINING


def _needed(case: Case) -> list[WorkerSight]:
    """Workers without which the job does not go on."""
    if _trains(case):
        return list(case.workers)
    return [worker for worker in case.workers if worker.rank == 0 and case.job.state is State.FINISHING]


def _advances(case: Case) -> bool:
    """Whether all workers make steps at their usual pace."""
    needed = _needed(case)
    return bool(needed) and all(
        worker.condition is Condition.ALIVE and worker.pace and (worker.at_step or 0.0) < max(FRESH, 2 * worker.pace)
        for worker in needed
    )


def _laggards(case: Case) -> tuple[int, ...]:
    """Ranks that others wait for at a shard: those at the lowest step there."""
    found: set[int] = set()
    for shard in case.shards:
        clocks = {member.worker: member.clock for member in shard.members}
        waiting = [member.worker for member in shard.members if member.waits_for]
        low = min(clocks.values(), default=0)
        if any(clocks[rank] > low for rank in waiting):
            behind = {rank for rank, clock in clocks.items() if clock == low}
            # Without so few the round closes as soon as worker 0 is there.
            found |= behind & {0} if len(behind - {0}) <= shard.spares else behind
    return tuple(sorted(found))


def _are_spared(case: Case, ranks: Sequence[int]) -> bool:
    """Whether rounds close without these."""
    return 0 not in ranks and bool(case.shards) and all(len(ranks) <= shard.spares for shard in case.shards)


def _dropped(case: Case) -> str:
    """`; so far 3 pushes of worker 2 came too late, and were dropped`; "" of none."""
    counts: dict[int, int] = {}
    for member in (member for shard in case.shards for member in shard.members):
        counts[member.worker] = max(counts.get(member.worker, 0), member.dropped)
    named = [f"{count} of worker {rank}" for rank, count in sorted(counts.items()) if count]
    return f"; so far pushes have come too late, and were dropped: {_listed(named)}" if named else ""


def _is_late(worker: WorkerSight) -> bool:
    limit = max(PATIENCE, USUAL * worker.pace) if worker.pace else START
    return worker.at_step is not None and worker.at_step > limit


def _clock(shard: ShardSight, rank: int) -> int:
    return next((member.clock for member in shard.members if member.worker == rank), -1)


def _ranks_of(case: Case) -> list[int]:
    return sorted(case.positions)


def _others(case: Case, ranks: Iterable[int]) -> list[int]:
    named = set(ranks)
    return [rank for rank in _ranks_of(case) if rank not in named]


def _where(case: Case, ranks: Iterable[int]) -> str:
    """`; workers 0 and 2 are at step 18`; "" of nobody."""
    steps: dict[int, list[int]] = {}
    for rank in ranks:
        steps.setdefault(case.positions[rank], []).append(rank)
    groups = [f"{_ranks(found)} {_are(found)} at step {step}" for step, found in sorted(steps.items())]
    return f"; {', '.join(groups)}" if groups else ""


def _ranks(ranks: Sequence[int]) -> str:
    """`worker 1`, `workers 0, 1 and 2`."""
    return f"worker{'s' * (len(ranks) > 1)} {_listed([str(rank) for rank in ranks])}"


def _places(shards: Sequence[ShardSight]) -> str:
    return f"shard{'s' * (len(shards) > 1)} {_listed([shard.address for shard in shards])}"


def _listed(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _are(ranks: Sequence[int]) -> str:
    return "is" if len(ranks) == 1 else "are"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "an unknown time"
    if seconds >= 600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
