"""Key-value stores in tests: opening them, and reading their watches."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, asynccontextmanager

from tests.support.wait import until
from tidemill import errors
from tidemill.kv.base import Entry, Event, EventType, Kv, WatchBatch
from tidemill.kv.etcd import EtcdKv

TIMEOUT = 20.0


async def read_watch(kv: Kv, prefix: str, from_revision: int, *, events: int) -> list[WatchBatch]:
    """Batches of a watch until it has brought so many events."""
    batches: list[WatchBatch] = []
    async with asyncio.timeout(TIMEOUT), aclosing(kv.watch(prefix, from_revision)) as watch:
        async for batch in watch:
            batches.append(batch)
            if sum(len(each.events) for each in batches) >= events:
                return batches
    raise AssertionError("a watch ends only with an error")


async def read_until(kv: Kv, prefix: str, from_revision: int, revision: int) -> list[Event]:
    """Events of a watch up to and with those of `revision`."""
    found: list[Event] = []
    async with asyncio.timeout(TIMEOUT), aclosing(kv.watch(prefix, from_revision)) as watch:
        async for batch in watch:
            found += batch.events
            if batch.revision >= revision:
                return found
    raise AssertionError("a watch ends only with an error")


def shown(events: Iterable[Event]) -> list[tuple[str, str, bytes, int]]:
    """Events as (what, key, value, revision)."""
    return [(event.type.value, event.entry.key, event.entry.value, event.entry.mod_revision) for event in events]


def replay(entries: Iterable[Entry], events: Iterable[Event]) -> dict[str, Entry]:
    """What somebody knows who read `entries` and then saw `events`; checks that revisions never go back."""
    state = {entry.key: entry for entry in entries}
    last = 0
    seen: set[tuple[str, int]] = set()
    for event in events:
        entry = event.entry
        assert entry.mod_revision >= last, "an event came out of order"
        assert (entry.key, entry.mod_revision) not in seen, "an event came twice"
        seen.add((entry.key, entry.mod_revision))
        last = entry.mod_revision
        if event.type is EventType.PUT:
            state[entry.key] = entry
        else:
            del state[entry.key]
    return state


@asynccontextmanager
async def etcd_kv(*endpoints: str, **options: object) -> AsyncIterator[EtcdKv]:
    """A client of the etcd at these endpoints, closed at the end."""
    kv = EtcdKv(endpoints, **options)  # type: ignore[arg-type]
    try:
        yield kv
    finally:
        await kv.close()


def fresh_prefix() -> str:
    """A prefix that no other test uses."""
    return f"test-{uuid.uuid4()}/"


async def healthy(kv: Kv) -> bool:
    """Whether the store answers now."""
    try:
        await kv.check()
    except errors.Unavailable:
        return False
    return True


class Collector:
    """A watch that runs beside the test."""

    def __init__(self, kv: Kv, prefix: str, from_revision: int) -> None:
        self.events: list[Event] = []
        self.revision = from_revision - 1
        self._task = asyncio.create_task(self._run(kv, prefix, from_revision))

    async def _run(self, kv: Kv, prefix: str, from_revision: int) -> None:
        async with aclosing(kv.watch(prefix, from_revision)) as watch:
            async for batch in watch:
                self.events += batch.events
                self.revision = batch.revision

    async def reach(self, revision: int) -> list[Event]:
        """The events when those up to `revision` are there."""
        await until(lambda: self.revision >= revision or self._task.done(), TIMEOUT, f"revision {revision}")
        if self._task.done():
            self._task.result()
        return self.events

    async def stop(self) -> None:
        """End the watch."""
        self._task.cancel()
        await asyncio.wait([self._task])
