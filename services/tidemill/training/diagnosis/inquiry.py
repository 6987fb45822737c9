"""Looks at a job from all sides at once, and says what it waits for."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from tidemill.clock import Clock
from tidemill.training.diagnosis.sights import Case, TeamSight, WorkerSight
from tidemill.training.diagnosis.verdict import Verdict, judge
from tidemill.training.jobs import Job, State
from tidemill.training.peers import Shards
from tidemill.training.store import JobStore

_AT_REST = (State.PENDING, State.PAUSED)


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a job waits for, and what that was learned from."""

    case: Case
    verdict: Verdict


class Inquiry:
    """Explains jobs.

    Args:
        store: where they are kept.
        view: adds to a stored job what is known of it here beyond that.
        sight: what is known here of the workers of a job; None, when another service looks after them.
        shards: the parameter servers.
        clock: the time.
    """

    def __init__(
        self,
        store: JobStore,
        view: Callable[[Job], Job],
        sight: Callable[[Job], TeamSight | None],
        shards: Shards,
        clock: Clock,
    ) -> None:
        self._store = store
        self._view = view
        self._sight = sight
        self._shards = shards
        self._clock = clock

    async def explain(self, identifier: str) -> Explanation:
        """What a job waits for. It takes no longer than looking at one shard may take. Raises NotFound."""
        job = self._view(await self._store.get(identifier))
        looks = [] if job.is_over else [self._shards.look(job.group, address) for address in job.shards]
        shards = await asyncio.gather(*looks)
        team = self._sight(job) or TeamSight(
            workers=tuple(
                WorkerSight(rank=worker.rank, attempt=worker.attempt, phase=worker.phase, step=worker.step)
                for worker in job.workers
            )
        )
        before = await self._before(job) if job.state is State.PENDING else ()
        now = self._clock.now()
        case = Case(job=job, workers=team.workers, shards=tuple(shards), meeting=team.meeting, before=before, now=now)
        return Explanation(case=case, verdict=judge(case))

    async def _before(self, job: Job) -> tuple[str, ...]:
        """Names of the jobs at work, and then of those that wait longer than `job`."""
        active = [other for other in await self._store.active() if other.id != job.id]
        working = [other.name for other in active if other.state not in _AT_REST]
        waiting = [
            other.name
            for other in active
            if other.state is State.PENDING and (other.created, other.id) < (job.created, job.id)
        ]
        return (*working, *waiting)
