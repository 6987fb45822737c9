"""Reading watches in tests."""

import asyncio
from collections.abc import Iterable
from contextlib import aclosing

from tidemill.kv.base import Entry, Event, EventType, Kv, WatchBatch

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
