"""Decides which jobs are at work: one orchestrator at a time, at most so many jobs at once, the oldest first."""

import asyncio
import logging
from collections import Counter as Tally
from contextlib import aclosing, suppress
from dataclasses import replace

from tidemill.errors import Stale, TidemillError
from tidemill.kv.session import LeaseSession
from tidemill.training.changes import ALL
from tidemill.training.diagnosis.sights import TeamSight
from tidemill.training.janitor import Janitor
from tidemill.training.jobs import Job, State, move
from tidemill.training.patience import Attempts, patiently
from tidemill.training.run import JobRun
from tidemill.training.store import LEADER
from tidemill.training.workshop import Workshop

LOG = logging.getLogger(__name__)
TICK = 5.0
"""Seconds after which jobs are looked at although nothing was heard of them."""


class Scheduler:
    """Takes up jobs while it leads.

    Of several training services with one store, one leads: it holds a lock that ends with its lease. A leader that
    cannot reach the store keeps its jobs at work, but takes up no more. Should another have taken over meanwhile, then
    the jobs have another owner, and are let go of.

    Args:
        shop: what jobs at work need.
        janitor: sees to what ended jobs leave behind.
        most: jobs at work at once.
        lease: seconds after which another one may lead when this one is silent.
    """

    def __init__(self, shop: Workshop, janitor: Janitor, *, most: int, lease: float) -> None:
        self._shop = shop
        self._janitor = janitor
        self._most = most
        self._lease = lease
        self._runs: dict[str, JobRun] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._later: dict[str, float] = {}
        """When a job is taken up again that was dropped."""
        self._stopping = False
        self._has_looked = False
        """Whether all jobs that are to be at work were taken up since this orchestrator leads."""

    @property
    def is_complete(self) -> bool:
        """Whether all workers at work are known here."""
        return self._has_looked and all(run.has_adopted for run in self._runs.values())

    def view(self, job: Job) -> Job:
        """`job` as stored, with what is known of it here beyond that."""
        run = self._runs.get(job.id)
        return run.view(job) if run else job

    def sight(self, job: Job) -> TeamSight | None:
        """What is known here of the workers of `job`; None, when it is not at work here."""
        run = self._runs.get(job.id)
        return run.sight(job) if run else None

    async def run(self) -> None:
        """Lead whenever that is possible, for ever.

        Raises:
            FailedPrecondition: reason DATA_VERSION_NEWER.
        """
        await patiently(self._shop.clock, "looking at the store", self._shop.store.check_format)
        attempts = Attempts(self._shop.clock, "leading")
        while True:
            try:
                async with await LeaseSession.open(
                    self._shop.store.kv, ttl=self._lease, clock=self._shop.clock
                ) as session:
                    await session.acquire(LEADER, self._shop.owner.encode())
                    attempts.succeeded()
                    LOG.info("this orchestrator leads")
                    await self._lead(session)
            except TidemillError as error:
                await attempts.pause(error)

    async def follow(self) -> None:
        """Hear of changes of jobs from the store, for ever."""
        changes, attempts = self._shop.changes, Attempts(self._shop.clock, "watching jobs")
        while True:
            try:
                async with aclosing(self._shop.store.changes()) as batches:
                    async for ids in batches:
                        attempts.succeeded()
                        if not ids:
                            changes.touch_all()
                        for identifier in ids:
                            changes.touch(identifier)
            except TidemillError as error:
                await attempts.pause(error)

    async def stop(self) -> None:
        """End the processes of all jobs; the jobs stay as they are, for the next orchestrator."""
        self._stopping = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _lead(self, session: LeaseSession) -> None:
        sweeping = asyncio.ensure_future(self._janitor.run())
        lost = asyncio.ensure_future(session.lost.wait())
        try:
            with self._shop.changes.of(ALL) as changed:
                while session.alive and not sweeping.done():
                    changed.clear()
                    jobs = await self._look()
                    if not self._has_looked:
                        await self._shop.launcher.sweep([job.uid for job in jobs])
                    self._has_looked = True
                    waiting = asyncio.ensure_future(changed.wait())
                    await asyncio.wait({waiting, lost, sweeping}, timeout=TICK, return_when=asyncio.FIRST_COMPLETED)
                    waiting.cancel()
            if sweeping.done():
                sweeping.result()
            raise Stale("the lease is lost", reason="LEASE_LOST")
        finally:
            self._has_looked = False
            for task in (sweeping, lost):
                task.cancel()
            await asyncio.gather(sweeping, lost, return_exceptions=True)

    async def _look(self) -> list[Job]:
        """Take up what is to be at work; the jobs that have not ended."""
        jobs = await self._shop.store.active()
        self._shop.placement.note(jobs)
        self._shop.counters.active(Tally(job.state for job in jobs))
        for job in jobs:
            if self._stopping or job.id in self._tasks or self._shop.clock.monotonic() < self._later.get(job.id, 0.0):
                continue
            if job.state is State.PAUSED:
                continue
            if job.state is not State.PENDING or len(self._tasks) < self._most:
                await self._take_up(job)
        return jobs

    async def _take_up(self, job: Job) -> None:
        """Claim a job, and let it run; another claim that was faster wins."""
        with suppress(Stale):
            claimed = await self._shop.store.save(claim(job, self._shop.owner, self._shop.clock.now()))
            run = JobRun(claimed, self._shop)
            self._runs[job.id] = run
            task = asyncio.create_task(run.run(), name=job.name)
            self._tasks[job.id] = task
            task.add_done_callback(lambda done: self._ended(job.id, done))

    def _ended(self, identifier: str, task: "asyncio.Task[None]") -> None:
        self._tasks.pop(identifier, None)
        self._runs.pop(identifier, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOG.error("a job is dropped, and taken up again", exc_info=error, extra={"job": f"jobs/{identifier}"})
            self._later[identifier] = self._shop.clock.monotonic() + TICK
        else:
            self._later.pop(identifier, None)
        self._shop.changes.touch(identifier)


def claim(job: Job, owner: str, now: float) -> Job:
    """`job` in the hands of `owner`: started, or taken over with the workers that it has."""
    job = replace(job, owner=owner)
    return move(job, State.STARTING, now) if job.state is State.PENDING else job
