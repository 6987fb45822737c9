"""The way to the store: refused at once while it is away, and found again."""

import asyncio

import pytest

from tests.support.clock import ManualClock
from tests.support.faulty_kv import Fault, FaultyKv
from tests.support.wait import until
from tidemill.errors import FailedPrecondition, Unavailable
from tidemill.kv.base import Kv
from tidemill.kv.sqlite import SqliteKv
from tidemill.registry import keys
from tidemill.registry.records import FORMAT, Head, encode
from tidemill.registry.store import PROBE_INTERVAL, Store


class Opening:
    """Opens a store when told that it can be."""

    def __init__(self) -> None:
        self.possible = False
        self.kv: FaultyKv | None = None
        self.fault = Fault.NONE

    async def __call__(self) -> Kv:
        if not self.possible:
            raise Unavailable("nobody there")
        self.kv = FaultyKv(await SqliteKv.open(":memory:"), lambda: self.fault)
        return self.kv


async def reached(store: Store) -> bool:
    try:
        await store.check()
    except Unavailable:
        return False
    return True


async def test_it_is_opened_as_soon_as_it_can_be() -> None:
    clock, opening = ManualClock(), Opening()
    store = Store(opening, clock)
    await store.open()
    running = asyncio.ensure_future(store.run())
    for call in (store.get("a"), store.put("a", b""), store.check(), store.grant_lease(5), anext(store.watch("", 1))):
        with pytest.raises(Unavailable) as away:
            await call
        assert away.value.reason == "STORE_AWAY"
        assert away.value.retry_after is not None
    opening.possible = True
    await clock.advance(PROBE_INTERVAL)
    await until(lambda: reached(store))
    await store.put("a", b"1")
    assert await store.get("a") is not None
    running.cancel()


async def test_an_outage_is_noticed_by_the_first_call_and_its_end_by_probes() -> None:
    clock, opening = ManualClock(), Opening()
    opening.possible = True
    store = Store(opening, clock)
    await store.open()
    running = asyncio.ensure_future(store.run())
    assert opening.kv is not None
    opening.kv.unreadable = True
    with pytest.raises(Unavailable) as first:
        await store.get("a")
    assert first.value.reason == "UNAVAILABLE"
    with pytest.raises(Unavailable) as second:
        await store.put("a", b"")
    assert second.value.reason == "STORE_AWAY"
    await until(lambda: clock.sleeping == 1)
    await clock.advance(PROBE_INTERVAL)
    with pytest.raises(Unavailable):
        await store.check()
    opening.kv.unreadable = False
    await until(lambda: clock.sleeping == 1)
    await clock.advance(PROBE_INTERVAL)
    await until(lambda: reached(store))
    running.cancel()


async def test_one_lost_answer_is_no_outage() -> None:
    opening = Opening()
    opening.possible = True
    store = Store(opening, ManualClock())
    await store.open()
    opening.fault = Fault.LOST_ANSWER
    with pytest.raises(Unavailable) as lost:
        await store.put("a", b"1")
    assert lost.value.reason == "OUTCOME_UNKNOWN"
    assert await store.get("a") is not None


async def test_data_of_a_newer_release_is_refused_at_the_start() -> None:
    kv = await SqliteKv.open(":memory:")
    await kv.put(keys.HEAD, encode(Head(format=FORMAT + 1, revision=1)))

    async def opener() -> Kv:
        return kv

    store = Store(opener, ManualClock())
    with pytest.raises(FailedPrecondition) as newer:
        await store.open()
    assert newer.value.reason == "DATA_VERSION_NEWER"
    with pytest.raises(Unavailable):
        await store.get("a")
    await kv.close()
