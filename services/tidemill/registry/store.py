"""The registry's way to its store: opened when it can be, and refused at once while it is away.

Without this, every call in an outage would wait for the store's own time limit, and writers, who take turns, for those
of all before them.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from tidemill.clock import Clock
from tidemill.errors import TidemillError, Unavailable
from tidemill.kv.base import Compare, Entry, Kv, Operation, Page, TxnResult, WatchBatch
from tidemill.registry import keys
from tidemill.registry.commit import UNKNOWN
from tidemill.registry.records import decode_head

T = TypeVar("T")

LOG = logging.getLogger(__name__)
PROBE_INTERVAL = 0.5
"""Seconds between attempts to reach a store that is away."""
PROBE_TIMEOUT = 2.0
"""Seconds that the store may take to answer a probe."""


class Store(Kv):
    """A key-value store that may be away.

    Args:
        opener: makes the store; called again until it succeeds.
        clock: times the probes.
    """

    def __init__(self, opener: Callable[[], Awaitable[Kv]], clock: Clock) -> None:
        self._opener = opener
        self._clock = clock
        self._kv: Kv | None = None
        self._problem = "it is not open yet"
        self._lost = asyncio.Event()
        self._lost.set()

    async def open(self) -> None:
        """Try to reach the store, once; when it is away, `run` goes on trying.

        Raises:
            FailedPrecondition: it belongs to another process, to a newer release, or is no store.
            Invalid: its address is wrong.
        """
        try:
            await self._probe()
        except Unavailable as error:
            LOG.warning("starting without the store: %s", error.message)

    async def run(self) -> None:
        """Probe the store whenever it is away, for ever."""
        while True:
            await self._lost.wait()
            try:
                await self._probe()
            except TidemillError:
                await self._clock.sleep(PROBE_INTERVAL)

    async def check(self) -> None:
        self._open_kv()
        await self._probe()

    async def get(self, key: str) -> Entry | None:
        return await self._call(lambda kv: kv.get(key))

    async def range(self, prefix: str, *, start_after: str = "", limit: int = 0, revision: int = 0) -> Page:
        return await self._call(lambda kv: kv.range(prefix, start_after=start_after, limit=limit, revision=revision))

    async def txn(self, compares: Sequence[Compare], operations: Sequence[Operation]) -> TxnResult:
        return await self._call(lambda kv: kv.txn(compares, operations))

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        async with aclosing(self._open_kv().watch(prefix, from_revision)) as batches:
            async for batch in batches:
                yield batch

    async def grant_lease(self, ttl: float) -> int:
        return await self._call(lambda kv: kv.grant_lease(ttl))

    async def renew_lease(self, lease: int) -> float:
        return await self._call(lambda kv: kv.renew_lease(lease))

    async def revoke_lease(self, lease: int) -> None:
        await self._call(lambda kv: kv.revoke_lease(lease))

    async def compact(self, revision: int) -> None:
        await self._call(lambda kv: kv.compact(revision))

    async def close(self) -> None:
        self._problem = "it is closed"
        if self._kv is not None:
            await self._kv.close()

    def _open_kv(self) -> Kv:
        if self._kv is None or self._problem:
            raise Unavailable(f"the registry's store is away: {self._problem}", reason="STORE_AWAY", retry_after=1.0)
        return self._kv

    async def _call(self, function: Callable[[Kv], Awaitable[T]]) -> T:
        kv = self._open_kv()
        try:
            return await function(kv)
        except Unavailable as error:
            if error.reason != UNKNOWN:  # one lost answer is no outage
                self._lose(error.message)
            raise

    def _lose(self, problem: str) -> None:
        if not self._problem:
            LOG.warning("the store is away: %s", problem)
        self._problem = problem
        self._lost.set()

    async def _probe(self) -> None:
        """Reach the store, and look whether this release understands what is in it."""
        try:
            if self._kv is None:
                self._kv = await self._opener()
            async with asyncio.timeout(PROBE_TIMEOUT):
                await self._kv.check()
                head = await self._kv.get(keys.HEAD)
            decode_head(head.value if head else None)
        except TimeoutError:
            problem = f"it did not answer within {PROBE_TIMEOUT:.0f} s"
            self._lose(problem)
            raise Unavailable(f"the registry's store is away: {problem}", reason="STORE_AWAY") from None
        except TidemillError as error:
            self._lose(error.message)
            raise
        if self._problem:
            LOG.info("the store answers")
        self._problem = ""
        self._lost.clear()
