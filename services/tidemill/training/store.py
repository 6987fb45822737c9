"""Jobs in the key-value store. Every change compares the revision that its maker has read: of two makers one wins.

training/jobs/{id}                 the job, without its epochs
training/epochs/{uid}/{number}     one finished epoch; never changes
training/newest/{time}.{id}        order of lists, newest first
training/active/{time}.{id}        jobs that have not ended, oldest first
training/requests/{digest}         id of the job that a request created
training/duties/{uid}.{kind}       work that is left to do for a job that has ended
training/format                    version of all this
"""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from tidemill import records
from tidemill.errors import AlreadyExists, DataLoss, FailedPrecondition, NotFound, Stale, Unavailable, invalid
from tidemill.kv.base import CompactedError, Compare, Delete, Entry, Kv, Operation, Put
from tidemill.training.epochs import Epoch
from tidemill.training.jobs import Job, State

LOG = logging.getLogger(__name__)
FORMAT = 1
"""Version of the storage format; a store with a newer one is refused."""
ROOT = "training/"
JOBS = f"{ROOT}jobs/"
EPOCHS = f"{ROOT}epochs/"
NEWEST = f"{ROOT}newest/"
ACTIVE = f"{ROOT}active/"
REQUESTS = f"{ROOT}requests/"
DUTIES = f"{ROOT}duties/"
LEADER = f"{ROOT}leader"
_FORMAT = f"{ROOT}format"
_LAST = 10**20 - 1
_READS = 16
_SCAN = 100
_REMEMBERED = 256
_OUTSIDE = frozenset({"epochs", "revision"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Duty:
    """Work that is left to do for a job that has ended: done again and again until it succeeds."""

    uid: str
    kind: str
    job: str
    """Resource name of the job."""
    group: str = ""
    """Parameter group to delete."""
    shards: tuple[str, ...] = ()
    """Shards to delete it from."""
    artifacts: tuple[str, ...] = ()
    """Artifacts that the job has made and does not need any more: they are deleted, unless somebody else needs them."""
    inputs: tuple[str, ...] = ()
    """Artifacts of others that the job does not need any more: they stay."""
    created: float = 0.0

    @property
    def key(self) -> str:
        """Where it lies."""
        return f"{DUTIES}{self.uid}.{self.kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """A job in a list, and the position after which the list goes on."""

    job: Job
    position: str


class JobStore:
    """The jobs.

    Args:
        opener: opens the store that they are kept in.
    """

    def __init__(self, opener: Callable[[], Awaitable[Kv]]) -> None:
        self._opener = opener
        self._opened: Kv | None = None
        self._known: dict[str, tuple[Epoch, ...]] = {}
        """Epochs of the jobs that were looked at last."""
        self._unreadable: set[str] = set()

    @property
    def kv(self) -> Kv:
        """The open store."""
        assert self._opened is not None, "the store is opened before it is used"
        return self._opened

    async def open(self) -> None:
        """Open the store and look at its format; when it cannot be reached yet, `check_format` is called later.

        Raises:
            FailedPrecondition: reason DATA_VERSION_NEWER; and what opening raises.
        """
        self._opened = await self._opener()
        try:
            await self.check_format()
        except Unavailable as error:
            LOG.warning("the store cannot be reached yet: %s", error.message)

    async def close(self) -> None:
        """Close the store."""
        if self._opened is not None:
            await self._opened.close()

    async def check_format(self) -> None:
        """Mark a new store with the storage format.

        Raises:
            FailedPrecondition: reason DATA_VERSION_NEWER, when a newer release wrote the store.
        """
        await self.kv.txn([Compare(_FORMAT, mod_revision=0)], [Put(_FORMAT, str(FORMAT).encode())])
        entry = await self.kv.get(_FORMAT)
        found = entry.value.decode() if entry else ""
        if not found.isdecimal() or int(found) > FORMAT:
            raise FailedPrecondition(
                f"the store of jobs has data version {found[:20]}, this release knows up to {FORMAT}: use a newer one",
                reason="DATA_VERSION_NEWER",
                metadata={"version": found[:20], "supported": str(FORMAT)},
            )

    async def create(self, job: Job, request_id: str = "") -> Job:
        """Store a new job; the one that the same request has created before, if there is one.

        Raises:
            AlreadyExists: reason JOB_EXISTS, when there is such a job.
            Invalid: reason REQUEST_ID_REUSED, when the request id stands for a job of another spec.
        """
        job = replace(job, request=_request(request_id), finished=len(job.epochs))
        compares = [Compare(_job(job.id), mod_revision=0)]
        operations: list[Operation] = [
            Put(_job(job.id), records.encode(job, leave_out=_OUTSIDE)),
            Put(_newest(job), job.id.encode()),
            Put(_active(job), job.id.encode()),
        ]
        if job.request:
            compares.append(Compare(job.request, mod_revision=0))
            operations.append(Put(job.request, job.id.encode()))
        try:
            done = await self.kv.txn(compares, operations)
        except Unavailable as error:
            if error.reason != "OUTCOME_UNKNOWN":
                raise
            stored = await self.find(job.id)
            if stored is None or stored.uid != job.uid:
                raise
            return stored
        if done.succeeded:
            return replace(job, revision=done.revision)
        earlier = await self.of_request(request_id, job.fingerprint) if request_id else None
        if earlier is not None:
            return earlier
        raise AlreadyExists(f"{job.name} exists", reason="JOB_EXISTS", metadata={"job": job.name})

    async def of_request(self, request_id: str, fingerprint: str) -> Job | None:
        """The job that a request has created, if there is one.

        Raises:
            Invalid: reason REQUEST_ID_REUSED, when that request asked for something else.
        """
        entry = await self.kv.get(_request(request_id))
        found = await self.find(entry.value.decode()) if entry else None
        if found is None or found.request != _request(request_id):
            return None
        if found.fingerprint != fingerprint:
            raise invalid("request_id", "was used for another request", reason="REQUEST_ID_REUSED")
        return found

    async def find(self, identifier: str) -> Job | None:
        """The job with this id, or None."""
        entry = await self.kv.get(_job(identifier))
        if entry is None:
            return None
        job = records.decode(Job, entry.value)
        epochs = await self._epochs_of(job.uid)
        if job.finished >= 0:  # those that came while this was read belong to a later state of it
            epochs = epochs[: job.finished]
        return replace(job, revision=entry.mod_revision, epochs=epochs)

    async def _epochs_of(self, uid: str) -> tuple[Epoch, ...]:
        """The epochs of a job; as they never change, only those that are not known here are read."""
        known = self._known.pop(uid, ())
        start = f"{_epochs(uid)}{known[-1].epoch:05d}" if known else ""
        page = await self.kv.range(_epochs(uid), start_after=start)
        if page.entries:
            known = (*known, *(records.decode(Epoch, entry.value) for entry in page.entries))
        if known:
            self._known[uid] = known
            while len(self._known) > _REMEMBERED:
                del self._known[next(iter(self._known))]
        return known

    async def get(self, identifier: str) -> Job:
        """The job with this id. Raises NotFound."""
        job = await self.find(identifier)
        if job is None:
            raise NotFound(
                f"jobs/{identifier} does not exist", reason="JOB_NOT_FOUND", metadata={"job": f"jobs/{identifier}"}
            )
        return job

    async def page(self, size: int, after: str, state: State | None) -> tuple[list[Listed], bool]:
        """Jobs in one state, or all, newest first.

        Args:
            size: most jobs to return.
            after: position of the last job of the page before; "" = from the newest on.
            state: only these; None = all.

        Returns:
            The jobs, and whether there may be more.
        """
        found: list[Listed] = []
        while True:
            start = f"{NEWEST}{after}" if after else ""
            index = await self.kv.range(NEWEST, start_after=start, limit=max(size, _SCAN))
            for listed in await self._read(index.entries):
                if state is None or listed.job.state is state:
                    found.append(listed)
                    if len(found) == size:
                        return found, True
            if not index.more:
                return found, False
            after = index.entries[-1].key.removeprefix(NEWEST)

    async def active(self) -> list[Job]:
        """Jobs that have not ended, oldest first."""
        index = await self.kv.range(ACTIVE)
        return [listed.job for listed in await self._read(index.entries) if not listed.job.is_over]

    async def count_active(self) -> int:
        """How many jobs have not ended."""
        return len((await self.kv.range(ACTIVE)).entries)

    async def _read(self, index: Sequence[Entry]) -> list[Listed]:
        gate = asyncio.Semaphore(_READS)

        async def read(entry: Entry) -> Listed | None:
            identifier = entry.value.decode()
            try:
                async with gate:
                    job = await self.find(identifier)
            except DataLoss as error:  # one that is damaged must not hide the others
                if identifier not in self._unreadable:
                    LOG.error("jobs/%s is left out: %s", identifier, error.message)
                self._unreadable.add(identifier)
                return None
            return Listed(job=job, position=entry.key.removeprefix(NEWEST)) if job else None

        found = await asyncio.gather(*(read(entry) for entry in index))
        return [listed for listed in found if listed is not None]

    async def save(self, job: Job, *, duties: Sequence[Duty] = ()) -> Job:
        """Store a changed job, if nobody has changed it since it was read.

        Args:
            job: the changed job, at the revision that was read.
            duties: work to be remembered with the change.

        Raises:
            Stale: reason JOB_CHANGED, when it was changed or deleted meanwhile.
            Unavailable: reason OUTCOME_UNKNOWN, when it may or may not be stored: read it again.
        """
        job = replace(job, finished=len(job.epochs))
        operations: list[Operation] = [Put(_job(job.id), records.encode(job, leave_out=_OUTSIDE))]
        if job.epochs:  # only the last one can be new, and what is there never changes
            last = job.epochs[-1]
            operations.append(Put(f"{_epochs(job.uid)}{last.epoch:05d}", records.encode(last)))
        if job.is_over:
            operations.append(Delete(_active(job)))
        operations += [Put(duty.key, records.encode(duty)) for duty in duties]
        done = await self.kv.txn([Compare(_job(job.id), mod_revision=job.revision)], operations)
        if not done.succeeded:
            raise _changed(job)
        return replace(job, revision=done.revision)

    async def delete(self, job: Job, duties: Sequence[Duty]) -> None:
        """Delete a job that has ended, and remember what is left to do for it.

        Raises:
            Stale: reason JOB_CHANGED, when it was changed or deleted meanwhile.
        """
        operations: list[Operation] = [
            Delete(_job(job.id)),
            Delete(_newest(job)),
            Delete(_active(job)),
            Delete(_epochs(job.uid), prefix=True),
            *(Put(duty.key, records.encode(duty)) for duty in duties),
        ]
        if job.request:
            operations.append(Delete(job.request))
        done = await self.kv.txn([Compare(_job(job.id), mod_revision=job.revision)], operations)
        if not done.succeeded:
            raise _changed(job)

    async def duties(self) -> list[Duty]:
        """Work that is left to do."""
        return [records.decode(Duty, entry.value) for entry in (await self.kv.range(DUTIES)).entries]

    async def done(self, duty: Duty) -> None:
        """Forget a duty."""
        await self.kv.delete(duty.key)

    async def changes(self) -> AsyncGenerator[frozenset[str], None]:
        """Ids of jobs that have changed, for ever; an empty set first and whenever changes may have been missed."""
        while True:
            revision = (await self.kv.range(JOBS, limit=1)).revision
            yield frozenset()
            try:
                async with aclosing(self.kv.watch(JOBS, revision + 1)) as batches:
                    async for batch in batches:
                        if batch.events:
                            yield frozenset(event.entry.key.removeprefix(JOBS) for event in batch.events)
            except CompactedError:
                LOG.info("the store has forgotten changes of jobs that were not seen yet: reading them again")

    async def check(self) -> None:
        """Return when the store answers. Raises Unavailable."""
        await self.kv.check()


def _changed(job: Job) -> Stale:
    return Stale(f"{job.name} has changed", reason="JOB_CHANGED", metadata={"job": job.name})


def _request(request_id: str) -> str:
    return f"{REQUESTS}{hashlib.sha256(request_id.encode()).hexdigest()}" if request_id else ""


def _job(identifier: str) -> str:
    return f"{JOBS}{identifier}"


def _epochs(uid: str) -> str:
    return f"{EPOCHS}{uid}/"


def _newest(job: Job) -> str:
    return f"{NEWEST}{_LAST - int(job.created * 1e9):020d}.{job.id}"


def _active(job: Job) -> str:
    return f"{ACTIVE}{int(job.created * 1e9):020d}.{job.id}"
