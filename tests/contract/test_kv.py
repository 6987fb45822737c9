"""What every key-value store does: the same tests over SQLite in memory, SQLite in a file, and a real etcd."""

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


class TestReadsAndWrites:
    async def test_a_key_is_absent_until_it_is_written(self, kv: Kv) -> None:
        assert await kv.get("a") is None
        made = await kv.put("a", b"1")
        assert made.succeeded
        assert await kv.get("a") == Entry("a", b"1", made.revision, made.revision, 1)
        assert await kv.get("a/b") is None

    async def test_an_entry_tells_its_history(self, kv: Kv) -> None:
        first = (await kv.put("a", b"1")).revision
        second = (await kv.put("a", b"2")).revision
        assert await kv.get("a") == Entry("a", b"2", first, second, 2)
        await kv.delete("a")
        assert await kv.get("a") is None
        third = (await kv.put("a", b"3")).revision
        assert await kv.get("a") == Entry("a", b"3", third, third, 1)

    @pytest.mark.parametrize("value", [b"", b"\0\xff\0", b"x" * 900_000])
    async def test_values_are_any_bytes(self, kv: Kv, value: bytes) -> None:
        await kv.put("a", value)
        entry = await kv.get("a")
        assert entry is not None
        assert entry.value == value

    @pytest.mark.parametrize("key", ["ключ", "a\0b", "🐟/x", "a" * 1000, " ", "\U0010ffff"])
    async def test_keys_are_any_text(self, kv: Kv, key: str) -> None:
        await kv.put(key, b"1")
        assert [entry.key for entry in (await kv.range("")).entries] == [key]
        assert [entry.key for entry in (await kv.range(key)).entries] == [key]
        await kv.delete(key, prefix=True)
        assert await kv.get(key) is None

    async def test_every_change_makes_one_revision_and_nothing_else_does(self, kv: Kv) -> None:
        start = (await kv.put("a", b"1")).revision
        assert (await kv.put("a", b"1")).revision == start + 1
        assert (await kv.delete("absent")).revision == start + 1
        assert (await kv.delete("absent/", prefix=True)).revision == start + 1
        assert not (await kv.txn([Compare("a", mod_revision=start)], [Put("a", b"2")])).succeeded
        assert (await kv.txn([], [])).revision == start + 1
        both = await kv.txn([], [Put("b", b"1"), Delete("a"), Put("c", b"1")])
        assert both.revision == start + 2
        assert await revision_of(kv) == start + 2

    async def test_many_writers_lose_no_update(self, kv: Kv) -> None:
        await kv.put("counter", b"0")

        async def count(times: int) -> None:
            while times:
                entry = await kv.get("counter")
                assert entry is not None
                guard = Compare("counter", mod_revision=entry.mod_revision)
                if (await kv.txn([guard], [Put("counter", b"%d" % (int(entry.value) + 1))])).succeeded:
                    times -= 1

        await asyncio.gather(*(count(10) for _ in range(5)))
        entry = await kv.get("counter")
        assert entry is not None
        assert (entry.value, entry.version) == (b"50", 51)


class TestRange:
    async def test_a_prefix_selects_and_keys_come_in_order(self, kv: Kv) -> None:
        for key in ["m/2", "m/10", "m", "n/1", "m/é", "m/z", "l/9"]:
            await kv.put(key, key.encode())
        page = await kv.range("m/")
        assert [entry.key for entry in page.entries] == ["m/10", "m/2", "m/z", "m/é"]
        assert not page.more
        assert [entry.key for entry in (await kv.range("")).entries] == sorted(
            ["m/2", "m/10", "m", "n/1", "m/é", "m/z", "l/9"]
        )

    async def test_pages_at_one_revision_are_one_consistent_answer(self, kv: Kv) -> None:
        await kv.txn([], [Put(f"m/{i}", b"old") for i in range(7)])
        page = await kv.range("m/", limit=3)
        assert page.more
        await kv.txn([], [Delete("m/4"), Put("m/5", b"new"), Put("m/9", b"new")])
        found = list(page.entries)
        while page.more:
            page = await kv.range("m/", start_after=found[-1].key, limit=3, revision=page.revision)
            found += page.entries
        assert [(entry.key, entry.value) for entry in found] == [(f"m/{i}", b"old") for i in range(7)]

    async def test_a_page_that_ends_exactly_at_the_last_key_has_no_more(self, kv: Kv) -> None:
        await kv.txn([], [Put("m/1", b""), Put("m/2", b"")])
        assert not (await kv.range("m/", limit=2)).more
        assert (await kv.range("m/", start_after="m/2")).entries == ()
        assert len((await kv.range("m/", start_after="a")).entries) == 2
        assert (await kv.range("m/", start_after="n")).entries == ()

    async def test_the_past_can_be_read(self, kv: Kv) -> None:
        one = (await kv.put("a", b"1")).revision
        two = (await kv.put("b", b"2")).revision
        three = (await kv.delete("a")).revision
        past = {
            revision: {entry.key: entry.value for entry in (await kv.range("", revision=revision)).entries}
            for revision in (one, two, three)
        }
        assert past == {one: {"a": b"1"}, two: {"a": b"1", "b": b"2"}, three: {"b": b"2"}}
        assert (await kv.range("", revision=one)).revision == one

    async def test_the_future_cannot_be_read(self, kv: Kv) -> None:
        with pytest.raises(errors.OutOfRange):
            await kv.range("", revision=await revision_of(kv) + 1000)

    async def test_more_entries_than_one_reply_holds(self, kv: Kv) -> None:
        keys = [f"m/{i:04}" for i in range(1300)]
        for start in range(0, len(keys), 100):
            await kv.txn([], [Put(key, b"") for key in keys[start : start + 100]])
        assert [entry.key for entry in (await kv.range("m/")).entries] == keys
        page = await kv.range("m/", limit=1200)
        assert ([entry.key for entry in page.entries], page.more) == (keys[:1200], True)


class TestTransactions:
    async def test_a_key_is_created_once(self, kv: Kv) -> None:
        absent = [Compare("a", create_revision=0)]
        assert (await kv.txn(absent, [Put("a", b"first")])).succeeded
        assert not (await kv.txn(absent, [Put("a", b"second")])).succeeded
        assert not (await kv.txn([Compare("a", mod_revision=0)], [Put("a", b"second")])).succeeded
        entry = await kv.get("a")
        assert entry is not None
        assert entry.value == b"first"

    async def test_all_guards_must_hold_or_nothing_happens(self, kv: Kv) -> None:
        a, b = (await kv.put("a", b"1")).revision, (await kv.put("b", b"1")).revision
        bad = await kv.txn([Compare("a", mod_revision=a), Compare("b", mod_revision=a)], [Put("a", b"2"), Delete("b")])
        assert (bad.succeeded, bad.revision) == (False, b)
        assert {entry.key: entry.value for entry in (await kv.range("")).entries} == {"a": b"1", "b": b"1"}
        good = [Compare("a", mod_revision=a, create_revision=a), Compare("b", mod_revision=b)]
        assert (await kv.txn(good, [Put("a", b"2"), Delete("b")])).succeeded
        assert {entry.key: entry.value for entry in (await kv.range("")).entries} == {"a": b"2"}

    async def test_the_fencing_token_of_a_lock_outlives_no_owner(self, kv: Kv) -> None:
        token = (await kv.put("lock", b"me")).revision
        await kv.put("lock", b"still me")
        assert (await kv.txn([Compare("lock", create_revision=token)], [Put("data", b"1")])).succeeded
        await kv.delete("lock")
        await kv.put("lock", b"other")
        assert not (await kv.txn([Compare("lock", create_revision=token)], [Put("data", b"2")])).succeeded

    async def test_guards_alone_are_a_question(self, kv: Kv) -> None:
        revision = (await kv.put("a", b"1")).revision
        assert (await kv.txn([Compare("a", mod_revision=revision)], [])).succeeded
        assert not (await kv.txn([Compare("a", mod_revision=0)], [])).succeeded

    @pytest.mark.parametrize(
        ("operations", "reason"),
        [
            ([Put("a", b"1"), Put("a", b"2")], "DUPLICATE_KEY"),
            ([Put("a", b"1"), Delete("a")], "DUPLICATE_KEY"),
            ([Delete("a", prefix=True), Put("ab", b"1")], "DUPLICATE_KEY"),
            ([Delete("a", prefix=True), Delete("ab", prefix=True)], "DUPLICATE_KEY"),
            ([Put("", b"1")], "INVALID_KEY"),
            ([Delete("")], "INVALID_KEY"),
            ([Put("a" * 1025, b"1")], "INVALID_KEY"),
            ([Put("\ud800", b"1")], "INVALID_KEY"),
            ([Put(f"{i}", b"1") for i in range(129)], "TOO_LARGE"),
            ([Put("a", b"x" * (1 << 20))], "TOO_LARGE"),
        ],
    )
    async def test_what_cannot_be_is_refused(self, kv: Kv, operations: list[Put | Delete], reason: str) -> None:
        with pytest.raises(errors.Invalid) as caught:
            await kv.txn([], operations)
        assert caught.value.reason == reason
        assert (await kv.range("")).entries == ()

    async def test_a_guard_must_say_something(self, kv: Kv) -> None:
        with pytest.raises(errors.Invalid):
            await kv.txn([Compare("a")], [Put("b", b"1")])

    async def test_the_largest_transaction_is_accepted(self, kv: Kv) -> None:
        operations = [Put(f"{i:04}", b"x" * 8000) for i in range(128)]
        guards = [Compare(f"{i:04}", create_revision=0) for i in range(128)]
        assert (await kv.txn(guards, operations)).succeeded
        assert len((await kv.range("")).entries) == 128

    async def test_a_whole_prefix_goes_at_once(self, kv: Kv) -> None:
        await kv.txn([], [Put(key, b"") for key in ["a", "a/1", "a/2", "b"]])
        await kv.delete("a/", prefix=True)
        assert [entry.key for entry in (await kv.range("")).entries] == ["a", "b"]
        await kv.delete("", prefix=True)
        assert (await kv.range("")).entries == ()


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
