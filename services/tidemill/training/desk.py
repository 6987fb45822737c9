"""What callers can do with jobs: ask for them, look at them, follow them, stop and delete them."""

import asyncio
import hashlib
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import nullcontext, suppress
from dataclasses import replace

from tidemill import names, records
from tidemill.clock import Clock
from tidemill.errors import (
    AlreadyExists,
    Exhausted,
    FailedPrecondition,
    Invalid,
    NotFound,
    Stale,
    TidemillError,
    Unavailable,
    invalid,
)
from tidemill.training import checks, history, remains
from tidemill.training.catalogue import Catalogue, catalogue
from tidemill.training.changes import Changes
from tidemill.training.history import Event
from tidemill.training.jobs import Job, Progress, State, begun, cancel, pause, resize, resume
from tidemill.training.logs import JobLog, Line, LogDirectory, parse
from tidemill.training.patience import is_passing
from tidemill.training.peers import Artifacts, Shards
from tidemill.training.registration import LOG_FILE
from tidemill.training.spec import Component, JobSpec
from tidemill.training.store import JobStore, Listed

FOLD = 0.2
"""Seconds in which changes of a watched job are folded into one."""


class Desk:
    """Serves callers.

    Args:
        store: where jobs are kept.
        changes: tells when they change.
        view: adds to a stored job what is known of it here beyond that.
        logs: the logs that are kept here.
        shards, artifacts: neighbours that know what a spec may name.
        clock: the time.
        most: jobs that may wait or be at work at once.
    """

    def __init__(
        self,
        store: JobStore,
        changes: Changes,
        view: Callable[[Job], Job],
        logs: LogDirectory,
        shards: Shards,
        artifacts: Artifacts,
        clock: Clock,
        most: int,
    ) -> None:
        self._store = store
        self._changes = changes
        self._view = view
        self._logs = logs
        self._shards = shards
        self._artifacts = artifacts
        self._clock = clock
        self._most = most

    async def create(
        self, spec: JobSpec, identifier: str, request_id: str, traceparent: str, *, validate_only: bool
    ) -> Job:
        """A new job, or the one that the same request has created before.

        Raises:
            Invalid: something is wrong; the violations name the fields.
            AlreadyExists: there is such a job.
            Exhausted: too many jobs wait.
            Unavailable: what the spec names cannot be looked up now.
        """
        if identifier:
            names.check(identifier, "job_id")
        if len(request_id) > 128:
            raise invalid("request_id", "must be at most 128 characters")
        fingerprint = hashlib.sha256(identifier.encode() + b"/" + records.encode(spec)).hexdigest()
        if request_id and (earlier := await self._store.of_request(request_id, fingerprint)):
            return self._view(earlier)
        spec = await self._checked(checks.complete(spec))
        job = Job(
            id=identifier or f"{spec.model.name}-{secrets.token_hex(5)}",
            uid=secrets.token_hex(8),
            spec=spec,
            waiting="waits for its turn",
            progress=Progress(epochs=spec.epochs),
            traceparent=traceparent,
            created=self._clock.now(),
            fingerprint=fingerprint,
        )
        job = replace(job, changes=begun(job))
        if validate_only:
            await self._refuse_known(identifier)
            return job
        if await self._store.count_active() >= self._most:
            raise Exhausted(f"{self._most} jobs wait or are at work", reason="TOO_MANY_JOBS", retry_after=30)
        stored = await self._store.create(job, request_id)
        self._changes.touch(stored.id)
        return self._view(stored)

    async def _refuse_known(self, identifier: str) -> None:
        if not identifier:
            return
        with suppress(NotFound):
            known = await self._store.get(identifier)
            raise AlreadyExists(f"{known.name} exists", reason="JOB_EXISTS", metadata={"job": known.name})

    async def get(self, identifier: str) -> Job:
        """One job. Raises NotFound."""
        return self._view(await self._store.get(identifier))

    async def page(self, size: int, after: str, state: State | None) -> tuple[list[Listed], bool]:
        """Jobs, newest first: see `JobStore.page`."""
        found, more = await self._store.page(size, after, state)
        return [replace(listed, job=self._view(listed.job)) for listed in found], more

    async def cancel(self, identifier: str) -> Job:
        """A job after it was asked to stop.

        Raises:
            NotFound: there is none.
            FailedPrecondition: its version is being registered.
        """
        return await self._change(identifier, cancel)

    async def pause(self, identifier: str) -> Job:
        """A job after it was asked to pause.

        Raises:
            NotFound: there is none.
            FailedPrecondition: its training is over.
        """
        return await self._change(identifier, pause)

    async def resume(self, identifier: str, shards: int) -> Job:
        """A paused job after it was asked to go on, with another number of `shards` if that is not 0.

        Raises:
            NotFound: there is none.
            FailedPrecondition: it is not at rest yet, or has ended.
            Invalid: it cannot have so many shards.
        """

        def resumed(job: Job, now: float) -> Job:
            wanted = resume(job, shards, now)
            if wanted.spec.shards != job.spec.shards:
                checks.complete(wanted.spec)  # not every rule works on many shards
            return wanted

        return await self._change(identifier, resumed)

    async def resize(self, identifier: str, workers: int, shards: int) -> Job:
        """A job after it was asked for other numbers of `workers` and `shards`; 0 = as many as now.

        Raises:
            NotFound: there is none.
            FailedPrecondition: another change is being made, or it is too late for one.
            Invalid: it cannot have so many.
        """

        def changed(job: Job, now: float) -> Job:
            wanted = resize(job, workers, shards)
            after = wanted.spec
            if wanted.resize is not None:
                after = replace(after, workers=wanted.resize.workers, shards=wanted.resize.shards)
            if wanted is not job:
                checks.complete(after)  # not everything works with any number
            return wanted

        return await self._change(identifier, changed)

    async def _change(self, identifier: str, make: Callable[[Job, float], Job]) -> Job:
        """A job after `make` has changed it; `make` returns the job itself when there is nothing to change."""
        while True:
            job = await self._store.get(identifier)
            now = self._clock.now()
            wanted = make(job, now)
            if wanted is job:
                return self._view(job)
            try:
                stored = await self._store.save(wanted, duties=remains.at_end(job, now) if wanted.is_over else [])
            except Stale:
                continue
            self._changes.touch(identifier)
            return self._view(stored)

    async def delete(self, identifier: str) -> None:
        """Delete a job that has ended, its log, and the artifacts that only it needs.

        Raises:
            NotFound: there is none.
            FailedPrecondition: it has not ended.
        """
        while True:
            job = await self._store.get(identifier)
            if not job.is_over:
                raise FailedPrecondition(
                    f"{job.name} is {job.state.value}: cancel it first", reason="JOB_ACTIVE", metadata={"job": job.name}
                )
            try:
                await self._store.delete(job, remains.at_deletion(job, self._clock.now()))
            except Stale:
                continue
            await self._logs.delete(job.uid)
            self._changes.touch(identifier)
            return

    async def watch(self, identifier: str) -> AsyncGenerator[Job, None]:
        """A job now, and after every change, up to its final state; changes that come fast are folded together.

        Raises:
            NotFound: there is none, or it is deleted meanwhile.
        """
        sent: Job | None = None
        with self._changes.of(identifier) as changed:
            while True:
                changed.clear()
                job = await self.get(identifier)
                if job != sent:
                    yield job
                    sent = job
                if job.is_over:
                    return
                self._check_open()
                await changed.wait()
                await self._clock.sleep(FOLD)

    async def events(self, identifier: str, first: int, *, follow: bool) -> AsyncGenerator[Event, None]:
        """What has happened to a job from the event `first` on, each once; with `follow` until the job is over.

        Raises:
            NotFound: there is no such job, or it is deleted meanwhile.
            OutOfRange: that is so long ago that it is forgotten.
        """
        if first < 0:
            raise invalid("from_number", "must not be negative")
        uid = ""
        with self._changes.of(identifier) as changed:
            while True:
                changed.clear()
                job = await self._store.get(identifier)
                if job.uid != (uid or job.uid):
                    raise NotFound(f"{job.name} is another job now", reason="JOB_NOT_FOUND", metadata={"job": job.name})
                uid = job.uid
                for event in history.events(job, first):
                    yield event
                    first = event.number + 1
                if job.is_over or not follow:
                    return
                self._check_open()
                await changed.wait()

    async def log(self, identifier: str, first: int, *, follow: bool) -> AsyncGenerator[Line, None]:
        """The lines of a job's log from the line `first` on; with `follow` until the job is over.

        Raises:
            NotFound: there is no such job, or it is deleted meanwhile.
        """
        if first < 0:
            raise invalid("from_line", "must not be negative")
        log: JobLog | None = None
        with self._changes.of(identifier) as changed:
            while True:
                changed.clear()
                job = await self.get(identifier)
                if log is None or not self._logs.is_current(job.uid, log):
                    log = await self._logs.find(job.uid)
                if log is None and job.is_over:
                    async for line in self._kept(job, first):
                        yield line
                    return
                with log.grown() if log else nullcontext(changed) as grown:
                    while log and (lines := await log.read(first)):
                        for line in lines:
                            yield line
                        first = lines[-1].line + 1
                    if job.is_over or not follow:
                        return
                    self._check_open()
                    await _either(changed, grown)

    async def _kept(self, job: Job, first: int) -> AsyncGenerator[Line, None]:
        """The lines of a log that is not here any more, from its artifact."""
        if job.result is None or not job.result.logs:
            return
        number = 0
        async for raw in self._artifacts.lines(job.result.logs, LOG_FILE):
            if number >= first:
                yield parse(number, raw)
            number += 1

    async def catalogue(self) -> Catalogue:
        """What a job can be made of."""
        return await catalogue(self._shards)

    def _check_open(self) -> None:
        if self._changes.closed:
            raise Unavailable("the service stops", reason="STOPPING")

    async def _checked(self, spec: JobSpec) -> JobSpec:
        if spec.dataset.artifact:
            await self._check_dataset(spec.dataset.artifact)
        if not spec.shards:  # its optimizer is not a parameter server's
            return spec
        return replace(spec, optimizer=await self._check_optimizer(spec.optimizer))

    async def _check_dataset(self, digest: str) -> None:
        try:
            kind = await self._artifacts.kind(digest)
        except NotFound as error:
            raise invalid("spec.dataset.artifact", "does not exist", reason="ARTIFACT_NOT_FOUND") from error
        if kind != "dataset":
            raise invalid("spec.dataset.artifact", f"is of kind {kind}, not dataset", reason="WRONG_ARTIFACT_KIND")

    async def _check_optimizer(self, optimizer: Component) -> Component:
        """With all its hyperparameters, if a parameter server can be asked; otherwise it is looked at when one can."""
        try:
            for address in (await self._shards.live())[:3]:
                try:
                    found = await self._shards.check_optimizer(address, optimizer.name, optimizer.parameters)
                    return replace(optimizer, parameters=dict(found))
                except Invalid as error:
                    raise _of_optimizer(error) from error
                except TidemillError as error:
                    if not is_passing(error):
                        raise
        except TidemillError as error:
            if not is_passing(error):
                raise
        return optimizer


async def _either(one: asyncio.Event, other: asyncio.Event) -> None:
    waiting = [asyncio.ensure_future(one.wait()), asyncio.ensure_future(other.wait())]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def _of_optimizer(error: Invalid) -> Invalid:
    """What a parameter server says of an optimizer, with the fields of a job's spec."""
    fields = {}
    for field, problem in error.violations.items():
        _, found, name = field.rpartition("parameters")
        fields[f"spec.optimizer.parameters{name}" if found else "spec.optimizer.name"] = problem
    text = "; ".join(f"{field}: {problem}" for field, problem in fields.items()) or error.message
    return Invalid(text, reason=error.reason, metadata=error.metadata, violations=fields or {"spec.optimizer": text})
