"""Following the event log in the time of a manual clock."""

import asyncio
import tracemalloc
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

import pytest

from tests.support.clock import ManualClock
from tests.support.faulty_kv import Fault, FaultyKv
from tests.support.wait import until
from tidemill.errors import OutOfRange, Unavailable
from tidemill.kv.sqlite import SqliteKv
from tidemill.registry.commands import Commands
from tidemill.registry.log import EventLog
from tidemill.registry.models import Edit
from tidemill.registry.watch import RETRY, Batch, Tail, follow

HEARTBEAT = 10.0


@dataclass
class World:
    """A log with what writes to it and follows it."""

    kv: FaultyKv
    clock: ManualClock
    log: EventLog
    tail: Tail
    commands: Commands

    def follow(self, from_revision: int, model: str = "") -> AsyncGenerator[Batch, None]:
        return follow(self.log, self.tail, self.clock, from_revision, model=model, heartbeat=HEARTBEAT)

    async def create(self, *models: str) -> None:
        for model in models:
            await self.commands.create_model(model, Edit(), "")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    sqlite = await SqliteKv.open(":memory:")
    kv, clock = FaultyKv(sqlite, lambda: Fault.NONE), ManualClock()
    tail = Tail(kv, clock)
    log = EventLog(kv, clock, retention=1000, appended=lambda event: tail.move(event.revision))
    yield World(kv, clock, log, tail, Commands(log))
    await sqlite.close()


def revisions(batch: Batch) -> tuple[list[int], int]:
    return [event.revision for event in batch.events], batch.revision


async def test_a_batch_comes_at_once_and_then_with_each_event(world: World) -> None:
    watch = world.follow(0)
    assert revisions(await anext(watch)) == ([], 0)
    waiting = asyncio.ensure_future(anext(watch))
    await world.create("a")
    assert revisions(await waiting) == ([1], 1)
    await watch.aclose()


async def test_silence_is_broken_by_signs_of_life(world: World) -> None:
    await world.create("a")
    watch = world.follow(1)
    assert revisions(await anext(watch)) == ([], 0)
    assert revisions(await anext(watch)) == ([1], 1)
    for _ in range(3):
        waiting = asyncio.ensure_future(anext(watch))
        await until(lambda: world.clock.sleeping == 1)
        await world.clock.advance(HEARTBEAT - 0.1)
        assert not waiting.done()
        await world.clock.advance(0.1)
        assert revisions(await waiting) == ([], 1)
    await watch.aclose()


async def test_events_of_others_move_the_position_of_the_sign_of_life(world: World) -> None:
    watch = world.follow(1, model="mine")
    await anext(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await until(lambda: world.clock.sleeping == 1)
    await world.create("a", "b", "c")
    await until(lambda: world.clock.sleeping == 1)
    assert not waiting.done()
    await world.clock.advance(HEARTBEAT)
    assert revisions(await waiting) == ([], 3)
    await watch.aclose()


async def test_other_processes_events_wake_it_too(world: World) -> None:
    other = EventLog(world.kv, world.clock, retention=1000, appended=lambda event: None)
    following = asyncio.ensure_future(world.tail.run())
    watch = world.follow(1)
    await anext(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await until(lambda: world.clock.sleeping == 1)
    await Commands(other).create_model("a", Edit(), "")
    assert revisions(await asyncio.wait_for(waiting, 20)) == ([1], 1)
    await watch.aclose()
    following.cancel()


async def test_an_outage_of_the_store_is_sat_out(world: World) -> None:
    watch = world.follow(1)
    await anext(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await until(lambda: world.clock.sleeping == 1)
    world.kv.unreadable = True
    await world.clock.advance(HEARTBEAT)
    world.kv.unreadable = False
    await world.create("a")
    await world.clock.advance(RETRY)
    assert revisions(await waiting) == ([1], 1)
    await watch.aclose()


async def test_a_stop_ends_it(world: World) -> None:
    watch = world.follow(1)
    await anext(watch)
    waiting = asyncio.ensure_future(anext(watch))
    await until(lambda: world.clock.sleeping == 1)
    world.tail.close()
    with pytest.raises(Unavailable) as stopped:
        await waiting
    assert stopped.value.reason == "SHUTTING_DOWN"


async def test_a_watcher_that_is_trimmed_away_is_told(world: World) -> None:
    log = EventLog(world.kv, world.clock, retention=1, appended=lambda event: None)
    watch = world.follow(1)
    await anext(watch)
    for number in range(40):
        await Commands(log).create_model(f"m{number}", Edit(), "")
    with pytest.raises(OutOfRange) as trimmed:
        await anext(watch)
    assert trimmed.value.reason == "EVENTS_TRIMMED"


async def test_a_slow_watcher_keeps_nothing_in_memory(world: World) -> None:
    watches = [world.follow(1) for _ in range(20)]
    for watch in watches:
        await anext(watch)
    await world.create("a")
    tracemalloc.start()
    for number in range(100):
        await world.commands.update_model("a", Edit(description=str(number) * 4000), "")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 20 * 100 * 4000, "less than one copy of the events for each watcher"
    for watch in watches[:2]:
        seen: list[int] = []
        while len(seen) < 101:
            seen += revisions(await anext(watch))[0]
        assert seen == list(range(1, 102))
    for watch in watches:
        await watch.aclose()
