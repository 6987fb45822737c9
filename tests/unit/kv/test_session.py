"""What a lease session does when renewals fail, with time moved by hand."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.clock import ManualClock
from tests.support.wait import until
from tidemill import errors
from tidemill.kv.base import Compare, Operation, TxnResult
from tidemill.kv.session import LeaseSession
from tidemill.kv.sqlite import SqliteKv


class FaultyKv(SqliteKv):
    """A store whose renewals can fail or hang, and whose transactions can lose their reply."""

    down = False
    hanging = False
    lose_replies = 0
    renewals = 0

    async def renew_lease(self, lease: int) -> float:
        self.renewals += 1
        if self.hanging:
            await asyncio.Event().wait()
        if self.down:
            raise errors.Unavailable("down")
        return await super().renew_lease(lease)

    async def txn(self, compares: list[Compare], operations: list[Operation]) -> TxnResult:  # type: ignore[override]
        result = await super().txn(compares, operations)
        if self.lose_replies:
            self.lose_replies -= 1
            raise errors.Unavailable("lost", reason="OUTCOME_UNKNOWN")
        return result


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def kv(clock: ManualClock) -> AsyncIterator[FaultyKv]:
    store = await FaultyKv.open(":memory:", clock=clock)
    assert isinstance(store, FaultyKv)
    yield store
    await store.close()


@pytest.fixture
async def session(kv: FaultyKv, clock: ManualClock) -> AsyncIterator[LeaseSession]:
    async with await LeaseSession.open(kv, ttl=9, margin=1, clock=clock) as opened:
        await clock.until_sleeping(3)  # renewal, deadline, and the store's own expiry
        yield opened


async def test_it_is_renewed_every_third_of_its_time(kv: FaultyKv, session: LeaseSession, clock: ManualClock) -> None:
    for i in range(1, 21):
        await clock.advance(3)
        await until(lambda wanted=i: kv.renewals == wanted)  # type: ignore[misc]
        await clock.until_sleeping(3)
    assert session.alive
    assert await kv.renew_lease(session.lease) == 9


async def test_short_troubles_are_survived(kv: FaultyKv, session: LeaseSession, clock: ManualClock) -> None:
    kv.down = True
    await clock.advance(7.5)
    assert kv.renewals > 3
    assert session.alive
    kv.down = False
    await clock.advance(0.45)
    await clock.advance(7.9)
    assert session.alive
    assert not session.lost.is_set()


@pytest.mark.parametrize("fault", ["down", "hanging"])
async def test_it_is_lost_before_the_store_ends_it(
    kv: FaultyKv, session: LeaseSession, clock: ManualClock, fault: str
) -> None:
    token = await session.acquire("lock")
    setattr(kv, fault, True)
    await clock.advance(7.99)
    assert session.alive
    await clock.advance(0.02)
    assert session.lost.is_set()
    assert not session.alive
    entry = await kv.get("lock")
    assert entry is not None, "the store ends the lease only after the margin"
    assert entry.create_revision == token
    setattr(kv, fault, False)
    with pytest.raises(errors.Stale):
        session.guard("lock")
    await clock.advance(1)
    assert await kv.get("lock") is None


async def test_lost_is_lost_even_if_the_store_comes_back(
    kv: FaultyKv, session: LeaseSession, clock: ManualClock
) -> None:
    kv.down = True
    await clock.advance(8.5)
    kv.down = False
    before = kv.renewals
    await clock.advance(20)
    assert session.lost.is_set()
    assert kv.renewals == before


async def test_after_a_long_pause_nothing_is_trusted(session: LeaseSession, clock: ManualClock) -> None:
    await session.acquire("lock")
    clock.jump(8.5)  # no timer has run yet
    assert not session.alive
    with pytest.raises(errors.Stale):
        session.guard("lock")
    await clock.advance(0)
    assert session.lost.is_set()


async def test_a_lost_reply_of_acquire_is_read_back(kv: FaultyKv, session: LeaseSession) -> None:
    kv.lose_replies = 1
    token = await session.acquire("lock", b"me")
    entry = await kv.get("lock")
    assert entry is not None
    assert (entry.create_revision, entry.version, entry.value) == (token, 1, b"me")


async def test_closing_while_the_store_is_away_leaves_the_lease_to_end(kv: FaultyKv, clock: ManualClock) -> None:
    session = await LeaseSession.open(kv, ttl=5, clock=clock)
    await kv.close()
    await session.close()
    await session.close()
    assert session.lost.is_set()


@pytest.mark.parametrize(("ttl", "margin"), [(0.5, None), (9, -1), (9, 6)])
async def test_times_must_be_sensible(kv: FaultyKv, ttl: float, margin: float | None) -> None:
    with pytest.raises(errors.Invalid):
        await LeaseSession.open(kv, ttl=ttl, margin=margin)
