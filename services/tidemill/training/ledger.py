"""The stored state of one job at work, in the hands of its one owner."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

from tidemill.clock import Clock
from tidemill.errors import Stale, TidemillError
from tidemill.training.changes import Changes
from tidemill.training.jobs import Job, State
from tidemill.training.patience import Attempts, is_passing, patiently
from tidemill.training.store import Duty, JobStore


class Fenced(Exception):
    """The job is another orchestrator's now, or is over: let go of it."""


class CancelAsked(Exception):
    """Somebody wants the job to stop."""


class PauseAsked(Exception):
    """Somebody wants the job to pause, and all that must be kept of it is kept."""


class Ledger:
    """Changes one job, each change on top of the last; whoever else has changed it is noticed.

    Args:
        job: as it was read.
        owner: who is entitled to change it.
        store: where it is kept.
        changes: tells when it has changed.
        clock: what pauses go by.
    """

    def __init__(self, job: Job, owner: str, store: JobStore, changes: Changes, clock: Clock) -> None:
        self.job = job
        """As last stored."""
        self._owner = owner
        self._store = store
        self._changes = changes
        self._clock = clock
        self._lock = asyncio.Lock()

    async def change(
        self,
        make: Callable[[Job], Job],
        *,
        duties: Sequence[Duty] = (),
        cancelling: bool = False,
        pausing: bool = False,
    ) -> Job:
        """Store what `make` makes of the job, for as long as it takes; `make` is called again when the job has changed.

        Args:
            make: the change.
            duties: work to be remembered with it.
            cancelling: go on although a stop was asked for.
            pausing: go on although a pause was asked for.

        Raises:
            Fenced: it is not ours any more.
            CancelAsked: a stop was asked for.
            PauseAsked: a pause was asked for, and what must be kept is kept.
        """
        async with self._lock:
            attempts = Attempts(self._clock, f"storing {self.job.name}")
            tried: set[str] = set()
            while True:
                self._check(self.job, cancelling, pausing)
                wanted = make(self.job)
                if wanted == self.job:
                    return wanted
                nonce = secrets.token_hex(8)
                tried.add(nonce)
                try:
                    self.job = await self._store.save(replace(wanted, nonce=nonce), duties=duties)
                except Stale:
                    await self._read()
                except TidemillError as error:
                    if not is_passing(error):
                        raise
                    await attempts.pause(error)
                    await self._read()
                if self.job.nonce in tried:  # also when an attempt of which nothing was heard has arrived after all
                    attempts.succeeded()
                    return self.job

    async def follow(self, read: Callable[[], None] = lambda: None) -> NoReturn:
        """Watch the job for what others do with it; ends with Fenced, CancelAsked or PauseAsked only.

        Args:
            read: called whenever the job was read.
        """
        with self._changes.of(self.job.id) as changed:
            while True:
                changed.clear()
                async with self._lock:
                    await self._read()
                    self.check()
                read()
                await changed.wait()

    def check(self) -> None:
        """Go on, or raise.

        Raises:
            Fenced, CancelAsked, PauseAsked: as it was last read.
        """
        self._check(self.job, cancelling=False, pausing=False)

    async def _read(self) -> None:
        fresh = await patiently(self._clock, f"reading {self.job.name}", lambda: self._store.find(self.job.id))
        if fresh is None or fresh.uid != self.job.uid:
            raise Fenced
        self.job = fresh

    def _check(self, job: Job, cancelling: bool, pausing: bool) -> None:
        if job.is_over or job.owner != self._owner:
            raise Fenced
        if job.state is State.CANCELLING and not cancelling:
            raise CancelAsked
        if job.state is State.PAUSING and job.held and not pausing:
            raise PauseAsked
