"""The workers of one job: what they are told, and what is made of what they say."""

import asyncio
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

from tidemill.errors import FailedPrecondition, OutOfRange, Stale, invalid
from tidemill.training import epochs, remains, tokens
from tidemill.training.crew import STARTING, Crew
from tidemill.training.diagnosis.sights import MeetingSight, TeamSight
from tidemill.training.epochs import Epoch, Result
from tidemill.training.jobs import Copy, Job, State, Worker, move, resized, shortened
from tidemill.training.ledger import CancelAsked, Fenced, Ledger, PauseAsked
from tidemill.training.logs import SERVICE, JobLog
from tidemill.training.meeting import Meeting
from tidemill.training.meter import Beat, Meter
from tidemill.training.placement import JobFailed, ParametersLost
from tidemill.training.worker.task import Answer, Decision, Place, Task
from tidemill.training.workshop import Seat, Workshop

_TRAINING = (State.STARTING, State.RUNNING, State.PAUSING)


class _NotMoving(Exception):
    """The job does not go on with other workers or shards after all."""


class Team:
    """Trains one job, that is started: an `Employer` for its workers and the boss of its crew.

    Args:
        ledger: the job.
        shop: what it works with.
        log: the job's log.
    """

    def __init__(self, ledger: Ledger, shop: Workshop, log: JobLog) -> None:
        job = ledger.job
        self._ledger = ledger
        self._shop = shop
        self._log = log
        self._meter = Meter(job.spec.epochs, job.progress, job.workers, rounds=job.spec.consistency.rounds)
        self._meeting = Meeting()
        self._tokens: list[str] = []
        """Digests of all that were given out."""
        self._secrets: dict[int, str] = {}
        """Token of the process that is appointed to a rank, until it is started."""
        self._refusal: JobFailed | None = None
        self._refused = asyncio.Event()
        self._delivered = asyncio.Event()
        before = {worker.rank: worker for worker in job.workers}
        ranks = sorted({*range(job.spec.workers), *before})  # who was to leave may not have left yet
        workers = [before.get(rank, Worker(rank=rank, attempt=-1)) for rank in ranks]
        self._crew = Crew(job.uid, workers, shop.launcher, self, log, shop.patience, shop.clock)
        for worker in job.workers:
            self._admit(worker)

    def live(self, job: Job) -> Job:
        """`job` with what its workers have said since it was stored; finished epochs are known exactly."""
        progress = self._meter.progress()
        progress = replace(
            progress,
            step=max(progress.step, len(job.epochs) * progress.steps_per_epoch),
            samples=max(progress.samples, sum(epoch.samples for epoch in job.epochs)),
        )
        return replace(job, progress=progress, workers=self._crew.workers())

    def sight(self) -> TeamSight:
        """The workers as they are seen now, and their meeting if they need one."""
        spec = self._ledger.job.spec
        meeting = None
        if not spec.shards and spec.workers > 1:
            present = tuple(sorted(self._meeting.present))
            meeting = MeetingSight(
                generation=self._meeting.generation,
                present=present,
                missing=tuple(rank for rank in range(spec.workers) if rank not in present),
                is_open=self._meeting.is_open,
            )
        sights = tuple(sight for sight in self._crew.sights() if sight.rank < spec.workers)
        return TeamSight(workers=sights, meeting=meeting)

    async def adopt(self) -> None:
        """Look after the processes that an orchestrator before has started."""
        await self._crew.adopt()

    async def end(self) -> None:
        """End what still runs, also of an orchestrator before; give those that have done all their work time to end."""
        if self._ledger.job.result is not None:
            await self._crew.ended(within=self._shop.grace)
        await self._crew.stop()
        for digest in self._tokens:
            self._shop.tokens.revoke(digest)

    async def train(self) -> None:
        """Return when the result is there, or every process has done its part.

        Raises:
            JobFailed: a worker met what any other would meet again, or too many have died.
            ParametersLost: shards have lost the parameters, and there are checkpoints of them.
            Fenced, CancelAsked, PauseAsked: from the ledger.
        """
        await self._appoint()
        crew = asyncio.ensure_future(self._crew.run())
        refused = asyncio.ensure_future(self._refused.wait())
        delivered = asyncio.ensure_future(self._delivered.wait())
        try:
            await asyncio.wait({crew, refused, delivered}, return_when=asyncio.FIRST_COMPLETED)
            if self._refusal is not None:
                raise self._refusal
            if crew.done():
                crew.result()
            self._ledger.check()
        finally:
            for task in (crew, refused, delivered):
                task.cancel()
            await asyncio.gather(crew, refused, delivered, return_exceptions=True)

    async def _appoint(self) -> None:
        """Store who is to be started, before anybody is: whatever happens in between, nobody is started twice."""
        vacant, now = self._crew.vacant(), self._shop.clock.now()
        for rank in vacant:
            self._secrets[rank] = tokens.fresh()

        def appointed(job: Job) -> Job:
            job = self.live(job)
            current = {worker.rank: worker for worker in job.workers}
            current |= {rank: self._next(current.get(rank, Worker(rank=rank, attempt=-1))) for rank in vacant}
            workers = tuple(worker for _, worker in sorted(current.items()))
            return replace(job, workers=workers, started=job.started or now)

        job = await self._ledger.change(appointed)
        stored = [worker for worker in job.workers if worker.rank in vacant]
        for worker in stored:
            self._admit(worker)
        self._crew.appoint(stored)

    def _next(self, worker: Worker) -> Worker:
        """Who is to follow on a worker."""
        attempt, token = worker.attempt + 1, tokens.digest(self._secrets[worker.rank])
        return Worker(rank=worker.rank, attempt=attempt, handle=f"{worker.rank}.{attempt}", token=token)

    def _admit(self, worker: Worker) -> None:
        """A worker may call us."""
        if worker.token:
            self._shop.tokens.know(worker.token, Seat(self, worker.rank, worker.attempt))
            self._tokens.append(worker.token)

    def environment(self, rank: int) -> Mapping[str, str]:
        """Variables for the process that gets a rank, with the token that it was appointed with."""
        return {**self._shop.environment(), "TIDEMILL_WORKER_TOKEN": self._secrets.pop(rank)}

    def excuses(self, rank: int, status: int | None) -> bool:
        """Rank 0 has done its part when the result is there, the others when the training is over or goes on without
        them; or all is held."""
        job = self._ledger.job
        if job.held or rank >= job.spec.workers:
            return True
        return job.result is not None if rank == 0 else job.state not in _TRAINING

    async def replace(self, rank: int, reason: str, traceback: str) -> Worker:
        """Count the death of a process, and store who follows.

        Raises:
            JobFailed: there were too many.
            Fenced, CancelAsked, PauseAsked: from the ledger.
        """
        self._secrets[rank] = tokens.fresh()

        def replaced(job: Job) -> Job:
            most = job.spec.max_restarts or 0
            if job.restarts >= most:
                raise JobFailed(shortened(f"{reason}\n(replaced {job.restarts} of at most {most} times)"), traceback)
            job = self.live(job)
            workers = tuple(self._next(worker) if worker.rank == rank else worker for worker in job.workers)
            return replace(job, restarts=job.restarts + 1, workers=workers)

        job = await self._ledger.change(replaced)
        self._shop.counters.restarted()
        follower = next(worker for worker in job.workers if worker.rank == rank)
        self._admit(follower)
        return follower

    def task(self, rank: int, attempt: int) -> Task:
        """The worker's orders."""
        self._crew.member(rank, attempt)
        job = self._ledger.job
        return Task(
            job=job.name,
            spec=job.spec,
            rank=rank,
            attempt=attempt,
            group=job.group,
            shards=job.shards,
            traceparent=job.traceparent,
            artifacts=self._shop.artifacts.address,
            epochs=job.epochs,
            checkpoint=job.checkpoint,
            placement=job.placement,
        )

    async def beat(self, rank: int, attempt: int, beat: Beat) -> Answer:
        """Take a sign of life."""
        try:
            self._crew.beat(rank, attempt, beat)
            self._meter.beat(rank, attempt, beat, self._shop.clock.monotonic())
            self._meeting.seen(rank, attempt, beat.generation)
            self._shop.changes.stir(self._ledger.job.id)
            if beat.phase != STARTING and self._ledger.job.state is State.STARTING:
                await self._ledger.change(self._running)
        except (Stale, Fenced, CancelAsked, PauseAsked):
            return Answer(stop=True)
        job = self._ledger.job
        generation = 0 if job.spec.shards else self._meeting.generation
        stop = job.held or rank >= job.spec.workers or (rank != 0 and job.state not in _TRAINING)
        move = rank == 0 and job.state is State.RUNNING and job.resize is not None and job.resize.is_ready
        # Nobody goes far without rank 0, which keeps what there is when all have stopped; or they are told to stop.
        pause = job.state is State.PAUSING and (rank == 0 or not job.spec.consistency.waits)
        return Answer(stop=stop, generation=generation, pause=pause, move=move, placement=job.placement)

    async def meet(self, rank: int, attempt: int, *, lost: int, address: str) -> Place:
        """Where a worker meets the others."""
        self._crew.member(rank, attempt)
        job = self._ledger.job
        if job.held or rank >= job.spec.workers or (rank != 0 and job.state not in _TRAINING):
            _stopped()
        generation, place = self._meeting.arrive(rank, attempt, lost=lost, address=address)
        # One of them may be due to each death, seen by the others, and one to the arrival of its replacement.
        needless = generation - 1 - 2 * job.restarts
        if needless > 1 + (job.spec.max_restarts or 0):
            self._refuse(JobFailed(f"workers have lost each other {needless} times although none of them had died"))
        return Place(generation=generation, address=place, checkpoint=job.checkpoint)

    async def choose_copy(self, rank: int, attempt: int, wanted: Copy) -> Copy:
        """The copy of a shard that counts; the first worker that wants the next term decides."""
        self._crew.member(rank, attempt)
        found = _copy(self._ledger.job, wanted.shard)
        if wanted.term != found.term + 1:
            return found

        def chosen(job: Job) -> Job:
            if wanted.term != _copy(job, wanted.shard).term + 1:
                return job
            others = [copy for copy in job.copies if copy.shard != wanted.shard]
            return replace(job, copies=tuple(sorted([*others, wanted], key=lambda copy: copy.shard)))

        try:
            await self._ledger.change(chosen)
        except (Fenced, CancelAsked, PauseAsked):
            _stopped()
        found = _copy(self._ledger.job, wanted.shard)
        if found == wanted:
            gone = "first" if wanted.copy else "second"
            text = f"the {gone} copy of parameter shard {wanted.shard} is gone: the other one goes on alone"
            self._log.append(SERVICE, text)
        return found

    async def report_checkpoint(
        self, rank: int, attempt: int, checkpoint: str, step: int, *, paused: bool = False, moved: bool = False
    ) -> None:
        """Take note of from where to go on, once; what was noted before is deleted."""
        self._check_reporter(rank, attempt)
        before = self._ledger.job
        same = checkpoint == before.checkpoint
        moved = moved and before.resize is not None  # else that was told before
        if before.held or (same and not paused and not moved):
            return
        beyond = paused or moved
        if step < before.checkpoint_step or (step == before.checkpoint_step and not same and not beyond):
            raise OutOfRange(f"there is a checkpoint of step {before.checkpoint_step}", reason="CHECKPOINT_SUPERSEDED")

        def noted(job: Job) -> Job:
            if paused and job.state is not State.PAUSING:
                _stopped()
            job = self.live(job)
            samples = job.progress.samples
            job = replace(
                job, checkpoint=checkpoint, checkpoint_step=step, checkpoint_samples=samples, held=job.held or paused
            )
            return self._moved(job) if moved else job

        now = self._shop.clock.now()
        duties = [] if same else remains.checkpoint(before, now)
        try:
            if moved:
                job = await self._ledger.change(noted, duties=[*duties, *remains.group(before, now)])
                self._go_on(before, job)
            else:
                await self._ledger.change(noted, duties=duties)
        except (Fenced, CancelAsked, PauseAsked):
            _stopped()
        except _NotMoving:  # it is to pause now: this worker has orders as before, and hears of it
            return

    def _moved(self, job: Job) -> Job:
        """`job` with the workers and shards that were asked for, and those appointed who join."""
        if job.resize is None or job.state is not State.RUNNING:
            raise _NotMoving
        now = resized(job)
        known = {worker.rank: worker for worker in job.workers}
        for rank in range(job.spec.workers, now.spec.workers):
            self._secrets.setdefault(rank, tokens.fresh())
            known[rank] = self._next(known.get(rank, Worker(rank=rank, attempt=-1)))
        return replace(now, workers=tuple(worker for _, worker in sorted(known.items())))

    def _go_on(self, before: Job, job: Job) -> None:
        """What was stored: let those join who are new."""
        workers, shards = job.spec.workers, job.spec.shards
        joining = [worker for worker in job.workers if before.spec.workers <= worker.rank < workers]
        for worker in joining:
            self._admit(worker)
        if not shards:
            self._meeting.anew()
        self._crew.grow(joining)
        text = f"from step {job.checkpoint_step} on: {workers} workers" + (f", {shards} shards" if shards else "")
        self._log.append(SERVICE, text + (f" ({', '.join(job.shards)})" if shards else ""))

    async def report_epoch(self, rank: int, attempt: int, epoch: Epoch) -> Decision:
        """Take the metrics of an epoch, once; whether to train on."""
        self._check_reporter(rank, attempt)

        def appended(job: Job) -> Job:
            if epoch.epoch <= len(job.epochs):
                return job
            reported = replace(epoch, reported=self._shop.clock.now())
            done = epochs.append(job.epochs, reported, job.spec)
            job = self.live(replace(self._running(job), epochs=done))
            return move(job, State.FINISHING, self._shop.clock.now()) if epochs.over(done, job.spec) else job

        if epoch.epoch < 1:
            raise invalid("epoch.epoch", "must be at least 1")
        try:
            job = await self._ledger.change(appended)
        except (Fenced, CancelAsked, PauseAsked):
            _stopped()
        best = epochs.best(job.epochs)
        return Decision(stop=epochs.over(job.epochs, job.spec), best_epoch=best.epoch if best else 0)

    async def report_result(self, rank: int, attempt: int, result: Result) -> None:
        """Take the result, once."""
        self._check_reporter(rank, attempt)

        def delivered(job: Job) -> Job:
            if job.state is not State.FINISHING:
                raise FailedPrecondition(
                    "the training is not over: report its epochs first", reason="TRAINING_NOT_OVER"
                )
            if job.result is not None:
                return job
            if not 1 <= result.best_epoch <= len(job.epochs):
                raise invalid("result.best_epoch", f"must be in [1, {len(job.epochs)}]")
            if not all(math.isfinite(value) for value in (result.parity, *result.test.values().values())):
                raise invalid("result.test", "must hold finite numbers")
            return replace(self.live(job), result=replace(result, model_version="", logs=""))

        try:
            await self._ledger.change(delivered)
        except (Fenced, CancelAsked, PauseAsked):
            _stopped()
        self._delivered.set()

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
        """Take note of why a worker cannot go on; a final failure fails the job."""
        member = self._crew.member(rank, attempt)
        member.failure, member.traceback = shortened(f"at step {step}: {error}"), traceback
        self._log.append(SERVICE, f"worker {rank} reports a failure {member.failure}")
        if group_lost and self._ledger.job.spec.durability.mode == "checkpoint":
            if self._ledger.job.state in _TRAINING:
                self._refuse(ParametersLost(f"worker {rank} {member.failure}"))
        elif final:
            self._refuse(JobFailed(f"worker {rank} {member.failure}", traceback))

    def _refuse(self, refusal: JobFailed) -> None:
        self._refusal = self._refusal or refusal
        self._refused.set()

    def _check_reporter(self, rank: int, attempt: int) -> None:
        self._crew.member(rank, attempt)
        if rank != 0:
            raise FailedPrecondition("only rank 0 reports epochs, checkpoints and results", reason="NOT_RANK_0")

    def _running(self, job: Job) -> Job:
        job = self.live(job)
        return move(job, State.RUNNING, self._shop.clock.now()) if job.state is State.STARTING else job


def _copy(job: Job, shard: int) -> Copy:
    if not 0 <= shard < len(job.shards):
        raise invalid("shard", f"must be one of the {len(job.shards)} of the job")
    return next((copy for copy in job.copies if copy.shard == shard), Copy(shard=shard))


def _stopped() -> NoReturn:
    raise Stale("the job is being stopped: end", reason="JOB_STOPPED")
