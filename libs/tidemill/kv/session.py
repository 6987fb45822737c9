"""A lease that is kept alive, and locks that end with it."""

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Self, TypeVar

from tidemill.clock import Clock, SystemClock
from tidemill.errors import NotFound, Stale, TidemillError, Unavailable, invalid
from tidemill.kv.base import CompactedError, Compare, Delete, EventType, Kv, Put
from tidemill.kv.checks import check_key

T = TypeVar("T")

_log = logging.getLogger(__name__)


class LeaseSession:
    """A lease renewed every third of its time to live, made by `open` and ended by `close`.

    The session trusts its lease only until its own deadline: the start of the last successful renewal + the time to
    live - a margin, on the local monotonic clock. The store cannot end the lease before that. From then on the session
    is lost, for good, even if the store can be reached again.

    A lost session cannot stop what is under way elsewhere. Every write that a lock protects must therefore carry
    `guard(key)`, or pass the lock's fencing token to whoever stores the result.
    """

    def __init__(self, kv: Kv, lease: int, ttl: float, margin: float, clock: Clock, renewed_at: float) -> None:
        self.lease = lease
        """The lease, for keys of one's own."""
        self.lost = asyncio.Event()
        """Set when the lease can no longer be relied on, also by `close`: stop writing."""
        self._kv = kv
        self._ttl = ttl
        self._margin = margin
        self._clock = clock
        self._deadline = renewed_at + ttl - margin
        self._tokens: dict[str, int] = {}
        self._tasks = [asyncio.create_task(self._renew()), asyncio.create_task(self._watch_deadline())]

    @classmethod
    async def open(cls, kv: Kv, *, ttl: float, margin: float | None = None, clock: Clock | None = None) -> Self:
        """Make a lease and keep it.

        Args:
            kv: the store; stays the caller's.
            ttl: seconds after which the lease ends when renewals fail, at least 1.
            margin: seconds by which the session gives up before the store does; a tenth of `ttl` by default.
            clock: what deadlines go by.

        Raises:
            errors.Invalid: `ttl` is too short, or `margin` is not below two thirds of it.
            errors.Unavailable: the store cannot be reached.
        """
        clock = clock or SystemClock()
        margin = ttl / 10 if margin is None else margin
        if not 0 <= margin < ttl * 2 / 3:
            raise invalid("margin", f"must be at least 0 and below two thirds of the ttl, not {margin}")
        now = clock.monotonic()
        return cls(kv, await kv.grant_lease(ttl), ttl, margin, clock, now)

    @property
    def alive(self) -> bool:
        """Whether the lease can be relied on now: also right after a pause in which no timer could run."""
        return not self.lost.is_set() and self._clock.monotonic() < self._deadline

    async def acquire(self, key: str, value: bytes = b"") -> int:
        """Take the lock `key`, waiting until its owner lets go or ends; a lock that is held already is kept.

        Args:
            key: the lock.
            value: what others can read about its owner.

        Returns:
            The fencing token: the revision at which the key was created, larger than that of every owner before.

        Raises:
            errors.Stale: reason LEASE_LOST, when the session ends first.
            errors.Unavailable: the store cannot be reached.
        """
        check_key(key)
        while True:
            self._check_alive()
            token = await self._try(key, value)
            if token is not None:
                self._check_alive()
                self._tokens[key] = token
                return token
            await self._unless_lost(self._until_free(key))

    async def release(self, key: str) -> None:
        """Let go of the lock `key`; letting go of what is not held, or not any more, is no error.

        Raises:
            errors.Unavailable: the store cannot be reached; with reason OUTCOME_UNKNOWN it may be released already.
        """
        token = self._tokens.pop(key, None)
        if token is not None:
            await self._kv.txn([Compare(key, create_revision=token)], [Delete(key)])

    def guard(self, key: str) -> Compare:
        """The condition for writes under the lock `key`: it has not changed hands.

        Raises:
            errors.Stale: reason LEASE_LOST, when the session is lost; reason LOCK_NOT_HELD, when it was not acquired.
        """
        self._check_alive()
        token = self._tokens.get(key)
        if token is None:
            raise Stale(f"the lock {key!r} is not held", reason="LOCK_NOT_HELD")
        return Compare(key, create_revision=token)

    async def close(self) -> None:
        """End the lease and with it every lock; when the store cannot be reached it ends by itself."""
        if not self._tasks:
            return
        tasks, self._tasks = self._tasks, []
        self.lost.set()
        self._tokens.clear()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        try:
            await self._kv.revoke_lease(self.lease)
        except TidemillError as error:
            _log.warning("lease %d is left to end by itself: %s", self.lease, error)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _check_alive(self) -> None:
        if not self.alive:
            raise Stale(f"lease {self.lease} is lost", reason="LEASE_LOST", metadata={"lease": str(self.lease)})

    async def _try(self, key: str, value: bytes) -> int | None:
        """The token, if the lock was free or is ours."""
        try:
            result = await self._kv.txn([Compare(key, create_revision=0)], [Put(key, value, self.lease)])
            if result.succeeded:
                return result.revision
        except NotFound:
            self.lost.set()
            self._check_alive()
        except Unavailable as error:
            if error.reason != "OUTCOME_UNKNOWN":
                raise
        entry = await self._kv.get(key)  # our lease on it tells that it is ours, also when no answer came
        return entry.create_revision if entry and entry.lease == self.lease else None

    async def _until_free(self, key: str) -> None:
        while True:
            page = await self._kv.range(key, limit=1)
            if not page.entries or page.entries[0].key != key:
                return
            with suppress(CompactedError):
                async with aclosing(self._kv.watch(key, page.revision + 1)) as batches:
                    async for batch in batches:
                        if any(e.type is EventType.DELETE and e.entry.key == key for e in batch.events):
                            return

    async def _unless_lost(self, work: Coroutine[None, None, None]) -> None:
        """Wait for `work`, but not longer than the session lives."""
        if not await self._first(work, self.lost.wait()):
            self._check_alive()

    async def _first(self, work: Coroutine[None, None, T], limit: Coroutine[None, None, object]) -> list[T]:
        """The result of `work`, if it comes before `limit` returns; whatever is not done by then is cancelled."""
        task, other = asyncio.ensure_future(work), asyncio.ensure_future(limit)
        try:
            await asyncio.wait({task, other}, return_when=asyncio.FIRST_COMPLETED)
            return [task.result()] if task.done() else []
        finally:
            for each in (task, other):
                each.cancel()
            await asyncio.wait({task, other})

    async def _renew(self) -> None:
        pause = self._ttl / 3
        while True:
            await self._clock.sleep(pause)
            if not self.alive:
                self.lost.set()
                return
            pause = self._ttl / 3 if await self._renewed() else min(1.0, self._ttl / 20)

    async def _renewed(self) -> bool:
        """Whether nothing is to be done until the next regular renewal."""
        started = self._clock.monotonic()
        try:
            done = await self._first(self._kv.renew_lease(self.lease), self._clock.sleep(self._ttl / 3))
        except NotFound:
            self.lost.set()
            return True
        except TidemillError as error:
            _log.warning("lease %d is not renewed yet: %s", self.lease, error)
            return False
        if not self.alive:
            self.lost.set()
            return True
        if done:
            self._deadline = started + min(done[0], self._ttl) - self._margin
        return bool(done)

    async def _watch_deadline(self) -> None:
        while (left := self._deadline - self._clock.monotonic()) > 0:
            await self._clock.sleep(left)
        self.lost.set()
