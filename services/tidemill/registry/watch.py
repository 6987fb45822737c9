"""Following the event log: a watcher holds its position and nothing else.

A slow watcher costs no memory, because it reads the log by pages at its own pace. Who waits at the end of the log is
woken by the one `Tail` of the process.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from tidemill.clock import Clock
from tidemill.errors import Exhausted, TidemillError, Unavailable
from tidemill.kv.base import CompactedError, EventType, Kv
from tidemill.registry import keys
from tidemill.registry.log import EventLog
from tidemill.registry.models import Event
from tidemill.registry.records import decode_head

LOG = logging.getLogger(__name__)
RETRY = 0.5
"""Seconds between attempts while the store does not answer."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Events in order, perhaps none, and the revision up to which the watcher has now seen the log."""

    events: tuple[Event, ...]
    revision: int


class Tail:
    """Follows the head of the log, which all processes on the store move, and wakes who waits at the end."""

    def __init__(self, kv: Kv, clock: Clock) -> None:
        self._kv = kv
        self._clock = clock
        self._revision = 0
        self._closed = asyncio.Event()
        self.moved = asyncio.Event()
        """Set when there is another event: take it before reading, wait for it after reading in vain."""

    async def run(self) -> None:
        """Follow the store for ever."""
        while True:
            try:
                await self._follow()
            except CompactedError:
                continue
            except TidemillError as error:
                LOG.debug("the event log is not followed now: %s", error.message)
                await self._clock.sleep(RETRY)

    async def _follow(self) -> None:
        page = await self._kv.range(keys.HEAD, limit=1)
        self._revision = -1  # whatever there is now may be new to those who wait
        self.move(decode_head(page.entries[0].value if page.entries else None).revision)
        async with aclosing(self._kv.watch(keys.HEAD, page.revision + 1)) as batches:
            async for batch in batches:
                for event in batch.events:
                    if event.type is EventType.PUT:
                        self.move(decode_head(event.entry.value).revision)

    def move(self, revision: int) -> None:
        """The log has come to this revision."""
        if revision > self._revision:
            self._revision = revision
            self.moved.set()
            self.moved = asyncio.Event()

    def close(self) -> None:
        """End all watches: the process stops."""
        self._closed.set()

    def check_open(self) -> None:
        """Raise `Unavailable` with the reason SHUTTING_DOWN after `close`."""
        if self._closed.is_set():
            raise Unavailable("the registry stops: watch again", reason="SHUTTING_DOWN", retry_after=0.5)

    async def wait(self, seconds: float, moved: asyncio.Event | None = None) -> None:
        """Wait until `moved` is set, `close` is called, or `seconds` are over."""
        events = [self._closed] if moved is None else [self._closed, moved]
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            timer = asyncio.ensure_future(self._clock.sleep(seconds))
            await asyncio.wait([*waits, timer], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*waits, timer):
                task.cancel()


async def follow(
    log: EventLog,
    tail: Tail,
    clock: Clock,
    from_revision: int,
    *,
    model: str,
    heartbeat: float,
) -> AsyncGenerator[Batch, None]:
    """All events from `from_revision` on (0 = from now on), each once and in order, for ever.

    Unless `model` is "", only its own. The first batch comes at once, and while the store answers there is one at least
    every `heartbeat` seconds. An outage of the store is sat out.

    Raises:
        OutOfRange: the next event is no longer kept; or the log does not reach so far.
        Unavailable: reason SHUTTING_DOWN; or the store cannot be reached at the beginning.
    """
    if from_revision:
        await log.check_start(from_revision)
        position = from_revision - 1
    else:
        position = (await log.head()).revision
    yield Batch((), position)
    due = clock.monotonic() + heartbeat
    while True:
        tail.check_open()
        moved = tail.moved
        try:
            events = await log.read(position + 1)
            if not events and clock.monotonic() >= due:
                await log.check_start(position + 1)
        except (Unavailable, Exhausted) as error:
            LOG.debug("a watch waits for the store: %s", error.message)
            await tail.wait(RETRY)
            continue
        if events:
            position = events[-1].revision
        chosen = tuple(event for event in events if not model or event.resource.model == model)
        if chosen or clock.monotonic() >= due:
            yield Batch(chosen, position)
            due = clock.monotonic() + heartbeat
        if not events:
            await tail.wait(max(0.0, due - clock.monotonic()), moved)
