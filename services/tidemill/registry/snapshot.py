"""Several reads of one moment of the store."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from tidemill.errors import Unavailable
from tidemill.kv.base import CompactedError, Entry, Kv, Page
from tidemill.registry import keys
from tidemill.registry.records import Head, decode_head

T = TypeVar("T")

ATTEMPTS = 5


class Snapshot:
    """The store as it was at the first read through this object."""

    def __init__(self, kv: Kv) -> None:
        self._kv = kv
        self._revision = 0
        self._head: tuple[Entry | None, Head] | None = None

    async def range(self, prefix: str, *, start_after: str = "", limit: int = 0) -> Page:
        """See `Kv.range`."""
        page = await self._kv.range(prefix, start_after=start_after, limit=limit, revision=self._revision)
        self._revision = page.revision
        return page

    async def get(self, key: str) -> Entry | None:
        """The entry of `key`, or None."""
        page = await self.range(key, limit=1)  # a key is the first of those that it begins
        return page.entries[0] if page.entries and page.entries[0].key == key else None

    async def head(self) -> tuple[Entry | None, Head]:
        """The entry of the event log's head (None in a new store) and what it says."""
        if self._head is None:
            entry = await self.get(keys.HEAD)
            self._head = entry, decode_head(entry.value if entry else None)
        return self._head


async def consistent(kv: Kv, read: Callable[[Snapshot], Awaitable[T]]) -> T:
    """The result of `read` on a snapshot; on a newer one when the store forgot the first meanwhile.

    Raises:
        Unavailable: the store forgets faster than it can be read.
    """
    for _ in range(ATTEMPTS):
        try:
            return await read(Snapshot(kv))
        except CompactedError:
            continue
    raise Unavailable("the store is compacted faster than it can be read", reason="COMPACTED", retry_after=1.0)
