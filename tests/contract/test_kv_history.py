"""What every key-value store does over time: watches, compaction, leases, and its own end."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import pytest

from tests.support.kv import read_until, read_watch, replay, shown
from tests.support.wait import until
from tidemill import errors
from tidemill.kv.base import CompactedError, Compare, Delete, Entry, Event, EventType, Kv, Operation, Put


async def revision_of(kv: Kv) -> int:
    return (await kv.range("nothing-here/")).revision


class TestWatch:
    async def test_history_and_then_what_happens(self, kv: Kv) -> None:
        one = (await kv.put("m/a", b"1")).revision
        await kv.put("other", b"1")
        two = (await kv.delete("m/a")).revision
        reading = asyncio.create_task(read_watch(kv, "m/", one, events=3))
        three = (await kv.put("m/b", b"2")).revision
        events = [event for batch in await reading for event in batch.events]
        assert events == [
            Event(EventType.PUT, Entry("m/a", b"1", one, one, 1)),
            Event(EventType.DELETE, Entry("m/a", b"", 0, two, 0)),
            Event(EventType.PUT, Entry("m/b", b"2", three, three, 1)),
        ]

    async def test_list_then_watch_misses_nothing(self, kv: Kv) -> None:
        await kv.put("m/a", b"1")
        page = await kv.range("m/")
        last = [await kv.put(f"m/{i}", b"x") for i in range(20)][-1].revision
        state = replay(page.entries, await read_until(kv, "m/", page.revision + 1, last))
        assert state == {entry.key: entry for entry in (await kv.range("m/")).entries}

    async def test_a_transaction_comes_whole_and_in_its_order(self, kv: Kv) -> None:
        await kv.txn([], [Put("m/c", b"0"), Put("m/a", b"0")])
        changes: list[Operation] = [Put("m/z", b"1"), Delete("m/c"), Put("m/b", b"1"), Put("n", b"")]
        revision = (await kv.txn([], changes)).revision
        batches = await read_watch(kv, "m/", revision, events=3)
        whole = [batch for batch in batches if batch.events]
        assert len(whole) == 1
        assert whole[0].revision >= revision
        assert shown(whole[0].events) == [
            ("put", "m/z", b"1", revision),
            ("delete", "m/c", b"", revision),
            ("put", "m/b", b"1", revision),
        ]

    async def test_a_deleted_prefix_comes_in_key_order(self, kv: Kv) -> None:
        await kv.txn([], [Put("m/c", b"0"), Put("m/a", b"0"), Put("m/b", b"0")])
        revision = (await kv.delete("m/", prefix=True)).revision
        (batch,) = (b for b in await read_watch(kv, "m/", revision, events=3) if b.events)
        assert shown(batch.events) == [("delete", f"m/{key}", b"", revision) for key in "abc"]

    async def test_a_long_history_comes_complete(self, kv: Kv) -> None:
        first = (await kv.put("m/first", b"")).revision
        for _ in range(5):
            await asyncio.gather(*(kv.put(f"m/{i % 7}", b"%d" % i) for i in range(300)))
        last = (await kv.put("m/last", b"")).revision
        batches = await read_watch(kv, "m/", first, events=1502)
        events = [event for batch in batches for event in batch.events]
        assert [event.entry.mod_revision for event in events] == list(range(first, last + 1))
        assert all(batch.revision >= batch.events[-1].entry.mod_revision for batch in batches if batch.events)

    async def test_each_batch_is_a_place_to_resume_from(self, kv: Kv) -> None:
        revisions = [(await kv.txn([], [Put(f"m/{i}", b""), Put(f"m/{i}'", b"")])).revision for i in range(5)]
        position = revisions[0]
        found: list[Event] = []
        while len(found) < 10:
            async with aclosing(kv.watch("m/", position)) as watch:
                batch = await anext(watch)
            found += batch.events
            position = batch.revision + 1
        assert [event.entry.mod_revision for event in found] == [r for r in revisions for _ in range(2)]

    async def test_the_future_can_be_waited_for(self, kv: Kv) -> None:
        now = (await kv.put("m/a", b"1")).revision
        reading = asyncio.create_task(read_watch(kv, "m/", now + 3, events=1))
        await asyncio.sleep(0)
        for value in (b"1", b"2", b"3"):
            await kv.put("m/a", value)
        ((event,),) = [batch.events for batch in await reading if batch.events]
        assert (event.entry.mod_revision, event.entry.value) == (now + 3, b"3")

    async def test_many_watchers_see_the_same(self, kv: Kv) -> None:
        now = await revision_of(kv)
        readers = [asyncio.create_task(read_watch(kv, prefix, now + 1, events=20)) for prefix in ["", "m/", "m/"] * 3]
        for i in range(20):
            await kv.put(f"m/{i}", b"x")
        results = [shown(e for batch in batches for e in batch.events) for batches in await asyncio.gather(*readers)]
        assert all(result == results[0] for result in results)

    async def test_a_watcher_that_gives_up_does_not_disturb(self, kv: Kv) -> None:
        now = await revision_of(kv)
        waiting = asyncio.create_task(read_watch(kv, "m/", now + 1, events=1))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        revision = (await kv.put("m/a", b"1")).revision
        assert shown((await read_watch(kv, "m/", now + 1, events=1))[-1].events) == [("put", "m/a", b"1", revision)]

    @pytest.mark.parametrize("revision", [0, -1])
    async def test_a_watch_needs_a_revision(self, kv: Kv, revision: int) -> None:
        with pytest.raises(errors.Invalid):
            await anext(kv.watch("m/", revision))


class TestCompaction:
    async def test_history_goes_and_values_stay(self, kv: Kv) -> None:
        one = (await kv.put("a", b"1")).revision
        await kv.put("b", b"1")
        three = (await kv.put("a", b"2")).revision
        await kv.delete("b")
        await kv.put("c", b"1")
        await kv.compact(three)
        with pytest.raises(CompactedError):
            await kv.range("", revision=one)
        assert {e.key: e.value for e in (await kv.range("", revision=three)).entries} == {"a": b"2", "b": b"1"}
        assert {e.key: e.value for e in (await kv.range("")).entries} == {"a": b"2", "c": b"1"}
        assert (await kv.get("a")) == Entry("a", b"2", one, three, 2)

    async def test_a_watch_from_forgotten_history_says_so_at_once(self, kv: Kv) -> None:
        one = (await kv.put("a", b"1")).revision
        three = [await kv.put("a", b"%d" % i) for i in range(3)][-1].revision
        await kv.compact(three)
        with pytest.raises(CompactedError) as caught:
            await read_watch(kv, "a", one, events=1)
        assert one < caught.value.compact_revision <= three
        page = await kv.range("a")
        next_revision = (await kv.put("a", b"new")).revision
        (event,) = (await read_watch(kv, "a", page.revision + 1, events=1))[-1].events
        assert event.entry.mod_revision == next_revision

    async def test_a_watcher_that_is_up_to_date_goes_on(self, kv: Kv) -> None:
        one = (await kv.put("a", b"1")).revision
        async with aclosing(kv.watch("a", one)) as watch:
            await anext(watch)
            two = (await kv.put("a", b"2")).revision
            await anext(watch)
            await kv.compact(two)
            three = (await kv.delete("a")).revision
            assert shown((await anext(watch)).events) == [("delete", "a", b"", three)]

    async def test_compacting_twice_or_less_is_no_error_and_the_future_is(self, kv: Kv) -> None:
        one = (await kv.put("a", b"1")).revision
        two = (await kv.put("a", b"2")).revision
        for revision in (two, two, one):
            await kv.compact(revision)
        with pytest.raises(errors.OutOfRange):
            await kv.compact(two + 1000)
        with pytest.raises(errors.Invalid):
            await kv.compact(0)

    async def test_revisions_go_on_after_everything_is_forgotten(self, kv: Kv) -> None:
        await kv.put("a", b"1")
        gone = (await kv.delete("a")).revision
        await kv.compact(gone)
        made = (await kv.put("a", b"2")).revision
        assert made == gone + 1
        assert await kv.get("a") == Entry("a", b"2", made, made, 1)


class TestLeases:
    async def test_keys_live_as_long_as_their_lease(self, kv: Kv) -> None:
        lease = await kv.grant_lease(60)
        assert lease != 0
        await kv.txn([], [Put("m/b", b"1", lease), Put("m/a", b"1", lease), Put("m/c", b"1")])
        entry = await kv.get("m/a")
        assert entry is not None
        assert entry.lease == lease
        before = await revision_of(kv)
        await kv.revoke_lease(lease)
        assert [entry.key for entry in (await kv.range("m/")).entries] == ["m/c"]
        (batch,) = (b for b in await read_watch(kv, "m/", before + 1, events=2) if b.events)
        assert shown(batch.events) == [("delete", "m/a", b"", before + 1), ("delete", "m/b", b"", before + 1)]

    async def test_a_lease_ends_by_itself(self, kv: Kv) -> None:
        lease = await kv.grant_lease(1)
        made = (await kv.put("m/a", b"1", lease=lease)).revision
        batches = await read_watch(kv, "m/", made, events=2)
        assert [event.type for batch in batches for event in batch.events] == [EventType.PUT, EventType.DELETE]
        with pytest.raises(errors.NotFound) as caught:
            await kv.renew_lease(lease)
        assert caught.value.reason == "LEASE_NOT_FOUND"

    async def test_renewal_tells_the_time_to_live(self, kv: Kv) -> None:
        lease = await kv.grant_lease(42)
        assert await kv.renew_lease(lease) == 42
        await kv.revoke_lease(lease)

    async def test_a_lease_that_has_ended_holds_nothing(self, kv: Kv) -> None:
        lease = await kv.grant_lease(60)
        await kv.revoke_lease(lease)
        await kv.revoke_lease(lease)
        for call in (lambda: kv.put("a", b"1", lease=lease), lambda: kv.renew_lease(lease)):
            with pytest.raises(errors.NotFound) as caught:
                await call()
            assert caught.value.reason == "LEASE_NOT_FOUND"
        with pytest.raises(errors.NotFound):
            await kv.txn([], [Put("b", b"1"), Put("a", b"1", lease)])
        assert (await kv.range("")).entries == ()
        assert not (await kv.txn([Compare("a", mod_revision=7)], [Put("a", b"1", lease)])).succeeded

    async def test_the_last_write_decides_the_lease(self, kv: Kv) -> None:
        one, two = await kv.grant_lease(60), await kv.grant_lease(60)
        await kv.txn([], [Put("free", b"1", one), Put("moved", b"1", one), Put("again", b"1", one)])
        await kv.txn([], [Put("free", b"2"), Put("moved", b"2", two), Delete("again")])
        await kv.put("again", b"2")
        await kv.revoke_lease(one)
        assert [entry.key for entry in (await kv.range("")).entries] == ["again", "free", "moved"]
        await kv.revoke_lease(two)
        assert [entry.key for entry in (await kv.range("")).entries] == ["again", "free"]

    async def test_a_lease_without_keys_makes_no_revision(self, kv: Kv) -> None:
        before = (await kv.put("a", b"1")).revision
        lease = await kv.grant_lease(60)
        await kv.revoke_lease(lease)
        assert await revision_of(kv) == before

    @pytest.mark.parametrize("ttl", [0.0, 0.5, -1.0, float("nan"), float("inf"), 1e12])
    async def test_a_time_to_live_must_be_sensible(self, kv: Kv, ttl: float) -> None:
        with pytest.raises(errors.Invalid):
            await kv.grant_lease(ttl)


class TestLife:
    async def test_a_store_that_answers_is_healthy(self, kv: Kv) -> None:
        await kv.check()

    async def test_after_close_nothing_is_answered(self, kv: Kv) -> None:
        now = (await kv.put("a", b"1")).revision
        waiting = asyncio.create_task(read_watch(kv, "a", now + 1, events=1))
        watching = aclosing(kv.watch("a", now))
        async with watching as watch:
            await anext(watch)
            await kv.close()
            await kv.close()
            with pytest.raises(errors.Unavailable):
                await anext(watch)
        with pytest.raises(errors.Unavailable):
            await waiting
        calls: list[Callable[[], object]] = [
            lambda: kv.get("a"),
            lambda: kv.range(""),
            lambda: kv.put("a", b""),
            lambda: kv.grant_lease(5),
            lambda: kv.renew_lease(1),
            lambda: kv.compact(1),
            lambda: kv.check(),
            lambda: anext(kv.watch("a", 1)),
        ]
        for call in calls:
            with pytest.raises(errors.Unavailable):
                await call()  # type: ignore[misc]

    async def test_nothing_is_left_running(self, kv: Kv) -> None:
        before = len(asyncio.all_tasks())
        now = (await kv.put("a", b"1")).revision
        for _ in range(3):
            await read_watch(kv, "a", now, events=1)
        await until(lambda: len(asyncio.all_tasks()) <= before + 1, what="tasks of watches end")
