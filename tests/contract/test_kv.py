"""What every key-value store does with keys and values: over SQLite in memory, SQLite in a file, and a real etcd."""

import asyncio

import pytest

from tidemill import errors
from tidemill.kv.base import Compare, Delete, Entry, Kv, Put


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
