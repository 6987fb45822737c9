"""A store that fails, waits and dawdles where the test says."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Self, TypeVar

from tidemill import errors
from tidemill.artifacts.config import ArtifactsConfig
from tidemill.artifacts.stores.base import Entry, Store

T = TypeVar("T")


class Gate:
    """One write that waits."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        """Set when the write has come."""
        self.open = asyncio.Event()
        """Lets the write go on once it is set."""


class FailingStore(Store):
    """Passes everything on to `inner`, and counts writes. From the write number `fail_at` on, all writes fail.

    A write goes on when its caller gives up, as in a thread.

    Args:
        inner: keeps the objects.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.writes = 0
        self.fail_at = 0
        """Number of the first write that fails, from 1; 0 = none."""
        self.applied = False
        """Whether that write happens all the same: its answer is what gets lost."""
        self.dawdling: random.Random | None = None
        """Lets other tasks run, by chance, before and after everything."""
        self._gates: dict[tuple[str, str], Gate] = {}

    @classmethod
    def open(cls, config: ArtifactsConfig) -> Self:
        """Not chosen by settings."""
        raise NotImplementedError

    def hold(self, operation: str, key: str) -> Gate:
        """Let the next `put`, `put_small` or `delete` of `key` wait."""
        gate = self._gates[operation, key] = Gate()
        return gate

    async def _dawdle(self) -> None:
        if self.dawdling is not None:
            for _ in range(self.dawdling.choice((0, 0, 3, 30))):
                await asyncio.sleep(0)

    async def _read(self, work: Callable[[], Awaitable[T]]) -> T:
        await self._dawdle()
        result = await work()
        await self._dawdle()
        return result

    async def _write(self, operation: str, key: str, work: Callable[[], Awaitable[T]]) -> T:
        self.writes += 1
        if self.fail_at and self.writes >= self.fail_at:
            if self.applied and self.writes == self.fail_at:
                await work()
            raise errors.Unavailable("this write fails in this test", reason="STORE_UNREACHABLE")
        gate = self._gates.pop((operation, key), None)

        async def write() -> T:
            if gate is not None:
                gate.reached.set()
                await gate.open.wait()
            return await self._read(work)

        return await asyncio.shield(asyncio.ensure_future(write()))

    async def start(self) -> None:
        """Start the inner one."""
        await self.inner.start()

    async def put(self, key: str, source: Path) -> None:
        """Put, unless it is to fail."""
        await self._write("put", key, lambda: self.inner.put(key, source))

    async def put_small(self, key: str, data: bytes) -> bool:
        """Put, unless it is to fail."""
        return await self._write("put_small", key, lambda: self.inner.put_small(key, data))

    async def delete(self, key: str) -> None:
        """Delete, unless it is to fail."""
        await self._write("delete", key, lambda: self.inner.delete(key))

    def get(self, key: str, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """Pass it on."""
        return self.inner.get(key, offset, length)

    async def stat(self, key: str) -> Entry:
        """Pass it on."""
        return await self._read(lambda: self.inner.stat(key))

    async def entries(self, prefix: str, start_after: str = "", limit: int = 1000) -> list[Entry]:
        """Pass it on."""
        return await self._read(lambda: self.inner.entries(prefix, start_after, limit))

    async def check(self) -> None:
        """Pass it on."""
        await self.inner.check()

    async def close(self) -> None:
        """Close the inner one."""
        await self.inner.close()
