"""Lease sessions and their locks, the same over every key-value store."""

import asyncio

import pytest

from tests.support.kv import TIMEOUT
from tests.support.wait import until
from tidemill import errors
from tidemill.kv.base import Kv, Put
from tidemill.kv.session import LeaseSession


async def test_a_lock_has_one_owner_and_growing_tokens(kv: Kv) -> None:
    inside = 0
    tokens: list[int] = []

    async def work(name: int) -> None:
        nonlocal inside
        async with await LeaseSession.open(kv, ttl=30) as session:
            for _ in range(3):
                token = await session.acquire("lock", b"%d" % name)
                inside += 1
                assert inside == 1
                tokens.append(token)
                assert (await kv.txn([session.guard("lock")], [Put("data", b"%d" % token)])).succeeded
                inside -= 1
                await session.release("lock")

    async with asyncio.timeout(TIMEOUT):
        await asyncio.gather(*(work(i) for i in range(4)))
    assert len(tokens) == 12
    assert tokens == sorted(set(tokens))
    assert await kv.get("lock") is None


async def test_the_end_of_a_session_frees_its_locks_and_keys(kv: Kv) -> None:
    one = await LeaseSession.open(kv, ttl=30)
    await one.acquire("lock", b"one")
    await kv.put("instance", b"up", lease=one.lease)
    async with await LeaseSession.open(kv, ttl=30) as two:
        waiting = asyncio.create_task(two.acquire("lock", b"two"))
        entry = await until(lambda: kv.get("lock"))
        assert entry.value == b"one"
        assert not waiting.done()
        await one.close()
        await asyncio.wait_for(waiting, TIMEOUT)
        assert await kv.get("instance") is None
        assert one.lost.is_set()
        assert not one.alive


async def test_a_lock_that_is_held_is_kept(kv: Kv) -> None:
    async with await LeaseSession.open(kv, ttl=30) as session:
        token = await session.acquire("lock")
        assert await session.acquire("lock") == token


async def test_locks_whose_names_begin_alike_are_different(kv: Kv) -> None:
    async with await LeaseSession.open(kv, ttl=30) as one, await LeaseSession.open(kv, ttl=30) as two:
        await one.acquire("lock/a")
        await asyncio.wait_for(two.acquire("lock"), TIMEOUT)


async def test_the_writes_of_a_former_owner_are_refused(kv: Kv) -> None:
    async with await LeaseSession.open(kv, ttl=30) as one, await LeaseSession.open(kv, ttl=30) as two:
        old = await one.acquire("lock")
        guard = one.guard("lock")
        await kv.delete("lock")  # as the store does when the lease ends, and its owner has not noticed
        new = await two.acquire("lock")
        assert new > old
        assert not (await kv.txn([guard], [Put("data", b"old")])).succeeded
        assert (await kv.txn([two.guard("lock")], [Put("data", b"new")])).succeeded
        await one.release("lock")
        assert await kv.get("lock") is not None, "a former owner must not release the lock of the next"


async def test_a_guard_needs_the_lock(kv: Kv) -> None:
    async with await LeaseSession.open(kv, ttl=30) as session:
        with pytest.raises(errors.Stale) as caught:
            session.guard("lock")
        assert caught.value.reason == "LOCK_NOT_HELD"
        await session.acquire("lock")
        await session.release("lock")
        await session.release("lock")
        with pytest.raises(errors.Stale):
            session.guard("lock")


async def test_a_lease_that_is_taken_away_is_noticed(kv: Kv) -> None:
    async with await LeaseSession.open(kv, ttl=1.5) as session:
        await session.acquire("lock")
        await kv.revoke_lease(session.lease)
        await asyncio.wait_for(session.lost.wait(), TIMEOUT)
        for key in ("other", "lock"):
            with pytest.raises(errors.Stale) as caught:
                await session.acquire(key)
            assert caught.value.reason == "LEASE_LOST"
        with pytest.raises(errors.Stale):
            session.guard("lock")


async def test_acquiring_with_an_ended_lease_loses_the_session_at_once(kv: Kv) -> None:
    async with await LeaseSession.open(kv, ttl=30) as session:
        await kv.revoke_lease(session.lease)
        with pytest.raises(errors.Stale) as caught:
            await session.acquire("lock")
        assert caught.value.reason == "LEASE_LOST"
        assert session.lost.is_set()


async def test_a_waiter_whose_session_ends_stops_waiting(kv: Kv) -> None:
    async with await LeaseSession.open(kv, ttl=30) as one:
        await one.acquire("lock")
        two = await LeaseSession.open(kv, ttl=30)
        waiting = asyncio.create_task(two.acquire("lock"))
        await asyncio.sleep(0)
        await two.close()
        with pytest.raises(errors.Stale):
            await asyncio.wait_for(waiting, TIMEOUT)


async def test_a_session_outlives_its_time_to_live(kv: Kv) -> None:
    async with await LeaseSession.open(kv, ttl=1) as session:
        loop = asyncio.get_running_loop()
        await session.acquire("lock")
        begun = loop.time()
        await until(lambda: loop.time() - begun > 1.7 or session.lost.is_set())
        assert session.alive
        assert await kv.get("lock") is not None
