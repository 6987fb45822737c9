"""The outcome of a write is found out, whatever the network loses."""

from collections.abc import AsyncIterator

import pytest

from tests.support.faulty_kv import Fault, FaultyKv
from tidemill.errors import Unavailable
from tidemill.kv.base import Compare, Kv, Put
from tidemill.kv.sqlite import SqliteKv
from tidemill.registry.commit import commit


@pytest.fixture
async def kv() -> AsyncIterator[Kv]:
    store = await SqliteKv.open(":memory:")
    yield store
    await store.close()


def faulty(kv: Kv, *faults: Fault) -> FaultyKv:
    left = [*faults]
    return FaultyKv(kv, lambda: left.pop(0) if left else Fault.NONE)


async def increment(kv: Kv, nonce: bytes) -> bool:
    entry = await kv.get("head")
    put, witness = Put("head", nonce), Put(f"events/{nonce.decode()}", nonce)
    return await commit(kv, Compare("head", mod_revision=entry.mod_revision if entry else 0), [put, witness], witness)


ONCE = [Fault.NONE, Fault.LOST_REQUEST, Fault.LOST_ANSWER, Fault.LATE]


@pytest.mark.parametrize("second", ONCE)
@pytest.mark.parametrize("first", ONCE)
async def test_a_lost_write_is_applied_exactly_once(kv: Kv, first: Fault, second: Fault) -> None:
    assert await increment(faulty(kv, first, second), b"a")
    entry = await kv.get("head")
    assert entry is not None
    assert (entry.value, entry.version) == (b"a", 1)


async def test_a_guard_that_does_not_hold_is_told(kv: Kv) -> None:
    await kv.put("head", b"other")
    witness = Put("events/a", b"a")
    assert not await commit(kv, Compare("head", mod_revision=0), [Put("head", b"a"), witness], witness)
    assert await kv.get("events/a") is None


@pytest.mark.parametrize("fault", [Fault.LOST_REQUEST, Fault.LATE])
async def test_another_write_that_comes_first_is_noticed(kv: Kv, fault: Fault) -> None:
    async def overtake() -> None:
        await kv.put("head", b"other")

    class Overtaken(FaultyKv):
        async def get(self, key: str):  # type: ignore[no-untyped-def]
            await overtake()
            return await super().get(key)

    entry = await kv.get("head")
    assert entry is None
    put, witness = Put("head", b"a"), Put("events/a", b"a")
    left = [fault]
    store = Overtaken(kv, lambda: left.pop(0) if left else Fault.NONE)
    assert not await commit(store, Compare("head", mod_revision=0), [put, witness], witness)
    assert await kv.get("events/a") is None


async def test_a_refused_write_is_the_stores_error(kv: Kv) -> None:
    with pytest.raises(Unavailable) as refused:
        await increment(faulty(kv, Fault.REFUSED), b"a")
    assert refused.value.reason == "UNAVAILABLE"


async def test_what_cannot_be_found_out_is_said_to_be_unknown(kv: Kv) -> None:
    with pytest.raises(Unavailable) as unknown:
        await increment(faulty(kv, *[Fault.LOST_REQUEST] * 3), b"a")
    assert unknown.value.reason == "OUTCOME_UNKNOWN"
    store = faulty(kv, Fault.LOST_ANSWER)
    witness = Put("events/a", b"a")
    store.unreadable = True
    with pytest.raises(Unavailable) as unreadable:
        await commit(store, Compare("head", mod_revision=0), [Put("head", b"a"), witness], witness)
    assert unreadable.value.reason == "OUTCOME_UNKNOWN"


async def test_a_refusal_after_a_lost_write_is_unknown_too(kv: Kv) -> None:
    with pytest.raises(Unavailable) as unknown:
        await increment(faulty(kv, Fault.LOST_REQUEST, Fault.REFUSED, Fault.REFUSED), b"a")
    assert unknown.value.reason == "OUTCOME_UNKNOWN"
