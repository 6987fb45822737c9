"""A store that fails where the test says."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Self, TypeVar

from tidemill import errors
from tidemill.artifacts.config import Config
from tidemill.artifacts.stores.base import Entry, Store

T = TypeVar("T")


class FailingStore(Store):
    """Passes everything on to `inner`, and counts writes. From the write number `fail_at` on, all writes fail.

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

    @classmethod
    def open(cls, config: Config) -> Self:
        """Not chosen by settings."""
        raise NotImplementedError

    async def _write(self, work: Callable[[], Awaitable[T]]) -> T:
        self.writes += 1
        if not self.fail_at or self.writes < self.fail_at:
            return await work()
        if self.applied and self.writes == self.fail_at:
            await work()
        raise errors.Unavailable("this write fails in this test", reason="STORE_UNREACHABLE")

    async def start(self) -> None:
        """Start the inner one."""
        await self.inner.start()

    async def put(self, key: str, source: Path) -> None:
        """Put, unless it is to fail."""
        await self._write(lambda: self.inner.put(key, source))

    async def put_small(self, key: str, data: bytes) -> bool:
        """Put, unless it is to fail."""
        return await self._write(lambda: self.inner.put_small(key, data))

    async def delete(self, key: str) -> None:
        """Delete, unless it is to fail."""
        await self._write(lambda: self.inner.delete(key))

    def get(self, key: str, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """Pass it on."""
        return self.inner.get(key, offset, length)

    async def stat(self, key: str) -> Entry:
        """Pass it on."""
        return await self.inner.stat(key)

    async def entries(self, prefix: str, start_after: str = "", limit: int = 1000) -> list[Entry]:
        """Pass it on."""
        return await self.inner.entries(prefix, start_after, limit)

    async def check(self) -> None:
        """Pass it on."""
        await self.inner.check()

    async def close(self) -> None:
        """Close the inner one."""
        await self.inner.close()
