"""A key-value store whose answers to writes get lost, in every way in which a network can lose them."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from enum import Enum

from tidemill.errors import Unavailable
from tidemill.kv.base import Compare, Entry, Kv, Operation, Page, TxnResult, WatchBatch


class Fault(Enum):
    """What happens to one transaction."""

    NONE = "it works"
    REFUSED = "it is refused and not applied"
    LOST_REQUEST = "it never arrives, and nobody knows"
    LOST_ANSWER = "it is applied, and nobody knows"
    LATE = "it arrives just before the next transaction, and nobody knows"


class FaultyKv(Kv):
    """`kv` with faults.

    Args:
        kv: does the work; stays the caller's to close.
        choose: the fault of the next transaction.
    """

    def __init__(self, kv: Kv, choose: Callable[[], Fault]) -> None:
        self._kv = kv
        self._choose = choose
        self._late: list[tuple[Sequence[Compare], Sequence[Operation]]] = []
        self.unreadable = False
        """Whether reads fail as well."""

    async def txn(self, compares: Sequence[Compare], operations: Sequence[Operation]) -> TxnResult:
        while self._late:
            await self._kv.txn(*self._late.pop(0))
        fault = self._choose()
        if fault is Fault.REFUSED:
            raise Unavailable("refused")
        if fault is Fault.LATE:
            self._late.append((compares, operations))
        if fault is Fault.LOST_ANSWER:
            await self._kv.txn(compares, operations)
        if fault is not Fault.NONE:
            raise Unavailable("lost", reason="OUTCOME_UNKNOWN")
        return await self._kv.txn(compares, operations)

    async def get(self, key: str) -> Entry | None:
        self._check_readable()
        return await self._kv.get(key)

    async def range(self, prefix: str, *, start_after: str = "", limit: int = 0, revision: int = 0) -> Page:
        self._check_readable()
        return await self._kv.range(prefix, start_after=start_after, limit=limit, revision=revision)

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        async with aclosing(self._kv.watch(prefix, from_revision)) as batches:
            async for batch in batches:
                yield batch

    async def grant_lease(self, ttl: float) -> int:
        return await self._kv.grant_lease(ttl)

    async def renew_lease(self, lease: int) -> float:
        return await self._kv.renew_lease(lease)

    async def revoke_lease(self, lease: int) -> None:
        await self._kv.revoke_lease(lease)

    async def compact(self, revision: int) -> None:
        await self._kv.compact(revision)

    async def check(self) -> None:
        self._check_readable()
        await self._kv.check()

    async def close(self) -> None:
        """The store stays open."""

    def _check_readable(self) -> None:
        if self.unreadable:
            raise Unavailable("unreadable")
