"""What ended jobs leave behind is cleared away, however often that has to be tried."""

import asyncio
import logging

from tidemill import names
from tidemill.clock import Clock
from tidemill.errors import TidemillError
from tidemill.training.changes import ALL, Changes
from tidemill.training.patience import Attempts, is_passing
from tidemill.training.peers import Artifacts, Shards
from tidemill.training.store import Duty, JobStore

LOG = logging.getLogger(__name__)
INTERVAL = 15.0
"""Seconds between two attempts at what is left."""
GROUP_LIFE = 7 * 86400.0
"""Seconds after which a shard that was never reached again counts as gone for good, and its groups with it."""


class Janitor:
    """Does the duties in the store.

    Args:
        store: where the duties are.
        shards: the parameter servers.
        artifacts: the artifact store.
        changes: tells when a job has changed, and may have left something.
        clock: what pauses go by.
    """

    def __init__(self, store: JobStore, shards: Shards, artifacts: Artifacts, changes: Changes, clock: Clock) -> None:
        self._store = store
        self._shards = shards
        self._artifacts = artifacts
        self._changes = changes
        self._clock = clock
        self._later: dict[str, float] = {}
        """When a duty that could not be done is tried again."""

    async def run(self) -> None:
        """Do duties, for ever."""
        attempts = Attempts(self._clock, "reading duties")
        with self._changes.of(ALL) as changed:
            while True:
                changed.clear()
                try:
                    for duty in await self._store.duties():
                        await self._attempt(duty)
                    attempts.succeeded()
                except TidemillError as error:
                    if not is_passing(error):
                        raise
                    await attempts.pause(error)
                await self._wait(changed)

    async def _wait(self, changed: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(changed.wait())
        timer = asyncio.ensure_future(self._clock.sleep(INTERVAL))
        try:
            await asyncio.wait({waiting, timer}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            timer.cancel()

    async def _attempt(self, duty: Duty) -> None:
        if self._clock.monotonic() < self._later.get(duty.key, 0.0):
            return
        try:
            finished = await self._do(duty)
        except TidemillError as error:
            if duty.key not in self._later:
                LOG.warning("duty %s of %s is tried again: %s", duty.kind, duty.job, error.message)
            finished = bool(duty.group) and self._clock.now() - duty.created > GROUP_LIFE
        if finished:
            self._later.pop(duty.key, None)
            await self._store.done(duty)
        else:
            self._later[duty.key] = self._clock.monotonic() + INTERVAL

    async def _do(self, duty: Duty) -> bool:
        """Whether the duty is done."""
        if duty.group:
            await self._shards.delete_group(duty.group, duty.shards)
        if duty.artifacts or duty.inputs:
            (identifier,) = names.split(duty.job, "jobs")
            job = await self._store.find(identifier)
            if job is not None and job.uid != duty.uid:
                return False  # a later job of the same name may need the same artifacts: wait until it is gone
            for digest in duty.inputs:
                await self._artifacts.release(digest, duty.job, delete=False)
            for digest in duty.artifacts:
                await self._artifacts.release(digest, duty.job, delete=True)
        return True
