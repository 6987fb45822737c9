"""One job at work: from the moment that an orchestrator takes it up until it is over, or another one's."""

import asyncio
import logging
from dataclasses import replace
from typing import Any, NoReturn

from opentelemetry import trace

from tidemill.errors import NotFound, TidemillError
from tidemill.telemetry import attributes
from tidemill.telemetry.propagation import from_traceparent
from tidemill.training import remains
from tidemill.training.diagnosis.sights import TeamSight
from tidemill.training.jobs import Job, State, given_up, hold, move
from tidemill.training.ledger import CancelAsked, Fenced, Ledger, PauseAsked
from tidemill.training.logs import SERVICE, JobLog
from tidemill.training.patience import patiently
from tidemill.training.placement import JobFailed, ParametersLost
from tidemill.training.team import Team
from tidemill.training.workshop import Workshop

LOG = logging.getLogger(__name__)
MOST_ROLLBACKS = 5
"""Times that a job is rolled back to the same step before it fails."""
FREEING = 10.0
"""Longest wait in seconds of a job that is being paused for its shards to be free; else that is seen to later."""


class JobRun:
    """Acts on one job.

    Args:
        job: as it was claimed: this orchestrator is its owner.
        shop: what it works with.
    """

    def __init__(self, job: Job, shop: Workshop) -> None:
        self._shop = shop
        self._ledger = Ledger(job, shop.owner, shop.store, shop.changes, shop.clock)
        self._log: JobLog | None = None
        self._team: Team | None = None
        self.has_adopted = False
        """Whether the workers of an orchestrator before are known here, if there are any."""

    def view(self, job: Job) -> Job:
        """`job` as it was stored, with what is known of it beyond that."""
        if job.is_over or not job.owner or job.uid != self._ledger.job.uid:
            return job
        return self._live(job)

    def sight(self, job: Job) -> TeamSight | None:
        """What is known here of the workers of `job`, if it is at work here."""
        if job.is_over or not job.owner or job.uid != self._ledger.job.uid:
            return None
        return self._team.sight() if self._team else TeamSight()

    def _live(self, job: Job) -> Job:
        return self._team.live(job) if self._team else job

    async def run(self) -> None:
        """Work until the job is over or paused, or not ours any more; never raises, but when it is cancelled."""
        job = self._ledger.job
        self._log = await self._shop.logs.open(job.uid)
        try:
            await self._conclude(await self._outcome())
        except Fenced:
            LOG.warning("another orchestrator has this job now, or it was deleted", extra={"job": job.name})
        finally:
            self._shop.logs.close(job.uid)
        if self._ledger.job.is_over:
            await self._shop.launcher.clean(job.uid)
            self._trace()
        elif self._ledger.job.state is State.PAUSED:
            await self._shop.launcher.clean(job.uid, paused=True)

    async def _outcome(self) -> BaseException | None:
        """Work; why it has ended, None when all went well. No process is left on return."""
        assert self._log is not None
        self._team = Team(self._ledger, self._shop, self._log)
        work = asyncio.ensure_future(self._work())
        news = asyncio.Event()
        guard = asyncio.ensure_future(self._ledger.follow(news.set))
        scout = asyncio.ensure_future(self._scout(news))
        try:
            await asyncio.wait({work, guard, scout}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            first = 0 if work.done() else 1 if guard.done() else 2
            for task in (work, guard, scout):
                task.cancel()
            results = await asyncio.gather(work, guard, scout, return_exceptions=True)
            await self._team.end()
        return results[first]

    async def _work(self) -> None:
        assert self._team is not None
        job = self._ledger.job
        await self._team.adopt()  # before anything that may take long: they wait for an answer
        self.has_adopted = True
        self._ledger.check()
        with self._span(attributes.SPAN_SCHEDULE):
            if job.state is State.STARTING:
                await self._protect_dataset()
                await self._shop.placement.place(self._ledger, self._tell)
        if job.result is None:
            await self._train(is_new=job.state is State.STARTING)
        await self._team.end()
        with self._span(attributes.SPAN_REGISTER):
            await self._shop.registration.run(self._ledger, self._shop.logs.path(job.uid), self._tell)

    async def _train(self, *, is_new: bool) -> None:
        """Let the workers train, from the last checkpoint on whenever the parameters are lost that have checkpoints."""
        assert self._team is not None
        step, times = -1, 0
        while True:
            try:
                if not is_new:
                    await self._check_state()
                return await self._team.train()
            except ParametersLost as lost:
                times = times + 1 if step == self._ledger.job.checkpoint_step else 1
                step, is_new = self._ledger.job.checkpoint_step, True
                if times > MOST_ROLLBACKS:
                    raise JobFailed(f"{lost}\n(rolled back {MOST_ROLLBACKS} times to step {step})") from lost
                await self._roll_back(str(lost))

    async def _scout(self, news: asyncio.Event) -> NoReturn:
        """Look for shards for a change of workers and shards, whenever one is asked for."""
        while True:
            resize = self._ledger.job.resize
            if resize is not None and not resize.is_ready and self._ledger.job.state is State.RUNNING:
                await self._shop.placement.scout(self._ledger, self._tell)
            news.clear()
            await news.wait()

    async def _roll_back(self, why: str) -> None:
        """End the workers, and give the job a new group for its last checkpoint."""
        assert self._team is not None
        assert self._log is not None
        await self._team.end()
        before, now = self._live(self._ledger.job), self._shop.clock.now()

        def gone(job: Job) -> Job:
            return replace(given_up(self._live(job)), held=job.state is State.PAUSING)

        await self._ledger.change(gone, duties=remains.group(before, now))
        self._tell(f"{why}: rolled back from step {before.progress.step} to step {before.checkpoint_step}")
        self._ledger.check()
        self._team = Team(self._ledger, self._shop, self._log)
        await self._shop.placement.place(self._ledger, self._tell, again=True)

    async def _protect_dataset(self) -> None:
        job = self._ledger.job
        digest = job.spec.dataset.artifact
        if digest:
            await patiently(
                self._shop.clock,
                "protecting the data set",
                lambda: self._shop.artifacts.refer(digest, job.name),
                self._tell,
            )

    async def _check_state(self) -> None:
        """Whether workers can go on where those of an orchestrator before have ended."""
        job = self._ledger.job
        if not job.spec.shards:
            self._tell(f"the training service was restarted: workers go on from step {job.checkpoint_step}")
            return
        if not job.shards:
            raise ParametersLost("the training service was restarted before they had a place")
        self._tell("the training service was restarted: workers go on where the parameters are")
        shards = self._shop.shards
        check = shards.check_copies if job.spec.durability.mode == "replicated" else shards.check_group
        kind = ParametersLost if job.spec.durability.mode == "checkpoint" else JobFailed
        try:
            async with asyncio.timeout(self._shop.group_patience):
                await patiently(
                    self._shop.clock,
                    "looking for the parameters",
                    lambda: check(job.group, job.shards),
                    self._tell,
                )
        except NotFound as error:
            raise kind(f"the training service was restarted, and the parameters are lost: {error.message}") from error
        except TimeoutError as error:
            raise kind("the training service was restarted, and the parameter shards are out of reach") from error

    async def _conclude(self, error: BaseException | None) -> None:
        """Store the final state."""
        if isinstance(error, Fenced):
            raise error
        if isinstance(error, CancelAsked):
            self._tell("the job is cancelled")
            await self._end(State.CANCELLED)
            return
        if isinstance(error, PauseAsked):
            await self._rest()
            return
        try:
            if error is None:
                self._tell("the job has succeeded")
                await self._end(State.SUCCEEDED)
            else:
                text = self._reason(error)
                self._tell(f"the job has failed: {text}")
                await self._end(State.FAILED, text, error.traceback if isinstance(error, JobFailed) else "")
        except (CancelAsked, PauseAsked) as asked:
            await self._conclude(asked)

    async def _rest(self) -> None:
        """Free the shards, and store that the job is paused."""
        job, now = self._ledger.job, self._shop.clock.now()
        duties = [] if await self._is_freed(job) else remains.group(job, now)
        self._tell(f"the job is paused at step {job.checkpoint_step}")
        try:
            await self._ledger.change(lambda current: hold(self._live(current), now), duties=duties, pausing=True)
        except CancelAsked as asked:
            await self._conclude(asked)

    async def _is_freed(self, job: Job) -> bool:
        if not job.shards:
            return True
        try:
            async with asyncio.timeout(FREEING):
                await self._shop.shards.delete_group(job.group, job.shards)
        except (TidemillError, TimeoutError):
            return False
        return True

    def _reason(self, error: BaseException) -> str:
        if isinstance(error, JobFailed | TidemillError):
            return str(error)
        LOG.error("a job fails for a fault of ours", exc_info=error, extra={"job": self._ledger.job.name})
        return f"an unexpected error happened ({type(error).__name__}); see the training service's log"

    async def _end(self, state: State, error: str = "", traceback: str = "") -> None:
        now = self._shop.clock.now()
        job = self._ledger.job
        await self._ledger.change(
            lambda current: replace(move(self._live(current), state, now, error=error), traceback=traceback),
            duties=remains.at_end(job, now),
            cancelling=state is State.CANCELLED,
        )
        self._shop.counters.ended(state)

    def _tell(self, text: str) -> None:
        if self._log is not None:
            self._log.append(SERVICE, text)

    def _span(self, name: str) -> Any:
        job = self._ledger.job
        return self._shop.tracer.start_as_current_span(
            name, context=from_traceparent(job.traceparent), attributes={attributes.JOB: job.name}
        )

    def _trace(self) -> None:
        """Record the whole job as one span."""
        job = self._ledger.job
        span = self._shop.tracer.start_span(
            attributes.SPAN_JOB,
            context=from_traceparent(job.traceparent),
            start_time=int(job.created * 1e9),
            attributes={attributes.JOB: job.name, attributes.SAMPLES: job.progress.samples},
        )
        if job.state is State.FAILED:
            span.set_status(trace.StatusCode.ERROR, job.error[:256])
        span.end(int(job.ended * 1e9))
