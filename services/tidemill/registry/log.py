"""The event log: every change of the registry is one transaction that also writes the next event.

The transaction compares the log's head, which every change moves. So changes are made one after another, over all
processes on one store, each on top of exactly the state that it was planned on; the events are 1, 2, 3 … without gaps.
"""

import asyncio
import random
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from tidemill.clock import Clock
from tidemill.errors import OutOfRange, Unavailable
from tidemill.kv.base import Compare, Delete, Kv, Operation, Put
from tidemill.registry import keys
from tidemill.registry.commit import commit
from tidemill.registry.models import Event, EventType, Resource
from tidemill.registry.records import EventRecord, Head, decode, encode, kind_of, plain
from tidemill.registry.snapshot import Snapshot, consistent

ATTEMPTS = 100
"""How often a change is planned anew when other processes' changes come in between."""
TRIM = 32
"""Events dropped at once: with their requests they leave room in a transaction of 128 operations."""
PAGE = 32
"""Events read at once."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What a change is planned on, and what it will be stamped with."""

    snapshot: Snapshot
    revision: int
    """Revision of the event to come: the new etag of the resource."""
    time: int
    """Microseconds since the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A planned change.

    Args:
        type: what it does.
        resource: as it will be, or was when it is deleted; it becomes the event's and the caller's answer.
        operations: what it writes, besides the event.
        request: key of the request that caused it, if it had an id; forgotten together with the event.
    """

    type: EventType
    resource: Resource
    operations: Sequence[Operation]
    request: str = ""


@dataclass(frozen=True, slots=True)
class Unchanged:
    """The plan found nothing to do; the resource is the answer."""

    resource: Resource


Plan: TypeAlias = Callable[[Moment], Awaitable[Change | Unchanged]]
"""Decides on a change. It may be called several times, and reads through the moment's snapshot only."""


class EventLog:
    """Appends to the log and reads it.

    Args:
        kv: the store.
        clock: tells the time of events.
        retention: newest events to keep at least; up to `TRIM` more are kept.
        appended: called with each event that was written here.
    """

    def __init__(self, kv: Kv, clock: Clock, *, retention: int, appended: Callable[[Event], None]) -> None:
        self._kv = kv
        self._clock = clock
        self._retention = retention
        self._appended = appended
        self._turn = asyncio.Lock()

    async def append(self, plan: Plan) -> Resource:
        """Make the change that `plan` decides on, together with its event; the resource that it tells of.

        Raises:
            Unavailable: the store is; reason OUTCOME_UNKNOWN, when the change may have been made; reason CONTENTION,
                when other processes' changes always came first.
        """
        async with self._turn:  # within a process they take turns; the guard is for the other processes
            for attempt in range(ATTEMPTS):
                event_or_answer = await consistent(self._kv, lambda snapshot: self._try(snapshot, plan))
                if isinstance(event_or_answer, Unchanged):
                    return event_or_answer.resource
                if event_or_answer is not None:
                    self._appended(event_or_answer)
                    return event_or_answer.resource
                await asyncio.sleep(random.uniform(0, min(0.05, 0.001 * 2 ** min(attempt, 10))))
        raise Unavailable("other changes always came first", reason="CONTENTION", retry_after=1.0)

    async def _try(self, snapshot: Snapshot, plan: Plan) -> Event | Unchanged | None:
        """What came of one attempt; None when another change came first."""
        entry, head = await snapshot.head()
        moment = Moment(snapshot, head.revision + 1, int(self._clock.now() * 1e6))
        change = await plan(moment)
        if isinstance(change, Unchanged):
            return change
        record = EventRecord(
            revision=moment.revision,
            time=moment.time,
            type=change.type,
            kind=kind_of(change.resource),
            resource=plain(change.resource),
            nonce=secrets.token_hex(8),
            request=change.request,
        )
        oldest, trims = await self._trim(snapshot, head)
        witness = Put(keys.event(moment.revision), encode(record))
        new_head = replace(head, revision=moment.revision, oldest=oldest)
        operations = [*change.operations, witness, Put(keys.HEAD, encode(new_head)), *trims]
        guard = Compare(keys.HEAD, mod_revision=entry.mod_revision if entry else 0)
        if not await commit(self._kv, guard, operations, witness):
            return None
        return record.event()

    async def _trim(self, snapshot: Snapshot, head: Head) -> tuple[int, list[Operation]]:
        """The oldest event that stays, and how the others go; they go in batches."""
        if head.revision - head.oldest + 1 < self._retention + TRIM:
            return head.oldest, []
        last = head.oldest + TRIM - 1
        page = await snapshot.range(keys.EVENTS, start_after=keys.event(head.oldest - 1), limit=TRIM)
        operations: list[Operation] = []
        for entry in page.entries:
            record = decode(EventRecord, entry.value)
            if record.revision > last:
                break
            operations.append(Delete(entry.key))
            if record.request:
                operations.append(Delete(record.request))
        return last + 1, operations

    async def head(self) -> Head:
        """Which events there are."""
        return (await Snapshot(self._kv).head())[1]

    async def check_start(self, from_revision: int) -> None:
        """Return when a watch can start at `from_revision`.

        Raises:
            OutOfRange: reason EVENTS_TRIMMED or FUTURE_REVISION.
        """
        head = await self.head()
        if from_revision < head.oldest:
            raise _trimmed(from_revision, head.oldest)
        if from_revision > head.revision + 1:
            raise OutOfRange(
                f"event {from_revision} is beyond the next one, {head.revision + 1}: list again, and watch from there",
                reason="FUTURE_REVISION",
                metadata={"revision": str(head.revision)},
            )

    async def read(self, from_revision: int) -> list[Event]:
        """At most `PAGE` events from `from_revision` on, in order without gaps; none when it is still to come.

        Raises:
            OutOfRange: reason EVENTS_TRIMMED, when it is no longer kept.
        """
        page = await self._kv.range(keys.EVENTS, start_after=keys.event(from_revision - 1), limit=PAGE)
        events = [decode(EventRecord, entry.value).event() for entry in page.entries]
        if events and events[0].revision != from_revision:
            raise _trimmed(from_revision, events[0].revision)
        return events


def _trimmed(revision: int, oldest: int) -> OutOfRange:
    return OutOfRange(
        f"event {revision} is no longer kept, the oldest is {oldest}: list, then watch from the list's revision + 1",
        reason="EVENTS_TRIMMED",
        metadata={"oldest": str(oldest)},
    )
