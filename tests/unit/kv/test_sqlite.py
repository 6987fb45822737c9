"""What the embedded store does with its file, its clock and its bounds."""

import asyncio
import random
import resource
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.support.clock import ManualClock
from tests.support.kv import TIMEOUT, read_until, read_watch, replay, shown
from tests.support.wait import until
from tidemill import errors
from tidemill.kv import sqlite
from tidemill.kv.base import CompactedError, Compare, Delete, Kv, Put
from tidemill.kv.sqlite import SqliteKv


@asynccontextmanager
async def opened(path: Path | str, **options: object) -> AsyncIterator[SqliteKv]:
    kv = await SqliteKv.open(path, **options)  # type: ignore[arg-type]
    try:
        yield kv
    finally:
        await kv.close()


class TestRestart:
    async def test_everything_is_there_again_with_its_history(self, tmp_path: Path) -> None:
        path = tmp_path / "new" / "folder" / "kv.db"
        async with opened(path) as kv:
            start = (await kv.put("a", b"1")).revision
            await kv.put("b", b"2")
            last = (await kv.txn([], [Put("a", b"3"), Delete("b")])).revision
            before = [await kv.range("", revision=revision) for revision in (start, start + 1, last)]
        async with opened(path) as kv:
            assert [await kv.range("", revision=revision) for revision in (start, start + 1, last)] == before
            events = await read_until(kv, "", start, last)
            assert replay([], events) == {entry.key: entry for entry in before[-1].entries}
            assert (await kv.put("c", b"1")).revision == last + 1

    async def test_a_lease_gets_its_full_time_again(self, tmp_path: Path) -> None:
        clock = ManualClock()
        async with opened(tmp_path / "kv.db", clock=clock) as kv:
            lease = await kv.grant_lease(10)
            await kv.put("a", b"1", lease=lease)
            await clock.advance(9)
        await clock.advance(100)
        async with opened(tmp_path / "kv.db", clock=clock) as kv:
            await clock.advance(9)
            assert await kv.get("a") is not None
            await clock.advance(2)
            assert await kv.get("a") is None
            assert await kv.grant_lease(10) > lease

    async def test_acknowledged_writes_survive_a_kill(self, tmp_path: Path) -> None:
        program = (
            "import asyncio, sys\n"
            "from tidemill.kv.sqlite import SqliteKv\n"
            "async def main():\n"
            "    kv = await SqliteKv.open(sys.argv[1])\n"
            "    for i in range(1_000_000):\n"
            "        print(i, (await kv.put(f'k/{i % 50}', str(i).encode())).revision, flush=True)\n"
            "asyncio.run(main())\n"
        )
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program, str(tmp_path / "kv.db"), stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        lines = [await process.stdout.readline() for _ in range(200)]
        process.send_signal(signal.SIGKILL)
        lines += (await process.stdout.read()).splitlines(keepends=True)
        await process.wait()
        acknowledged = [tuple(map(int, line.split())) for line in lines if line.endswith(b"\n")]
        async with opened(tmp_path / "kv.db") as kv:
            events = await read_until(kv, "k/", 1, acknowledged[-1][1])
        found = {event.entry.mod_revision: int(event.entry.value) for event in events}
        assert {revision: i for i, revision in acknowledged}.items() <= found.items()


class TestFile:
    async def test_one_store_at_a_time(self, tmp_path: Path) -> None:
        link = tmp_path / "link.db"
        link.symlink_to(tmp_path / "kv.db")
        async with opened(tmp_path / "kv.db") as kv:
            for path in (tmp_path / "kv.db", link):
                with pytest.raises(errors.FailedPrecondition) as caught:
                    await SqliteKv.open(path)
                assert caught.value.reason == "STORE_IN_USE"
            program = (
                "import asyncio, sys; from tidemill.kv.sqlite import SqliteKv; asyncio.run(SqliteKv.open(sys.argv[1]))"
            )
            other = await asyncio.create_subprocess_exec(
                sys.executable, "-c", program, str(tmp_path / "kv.db"), stderr=asyncio.subprocess.PIPE
            )
            _, error = await other.communicate()
            assert other.returncode == 1
            assert b"in use by another process" in error
            assert (await kv.put("a", b"1")).succeeded
        async with opened(tmp_path / "kv.db") as kv:
            assert await kv.get("a") is not None

    async def test_a_newer_version_is_refused_and_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "kv.db"
        async with opened(path) as kv:
            await kv.put("a", b"1")
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 2")
        db.close()
        before = path.read_bytes()
        with pytest.raises(errors.FailedPrecondition) as caught:
            await SqliteKv.open(path)
        assert caught.value.reason == "DATA_VERSION_NEWER"
        assert caught.value.metadata == {"version": "2", "supported": "1"}
        assert path.read_bytes() == before

    async def test_what_is_not_a_store_is_refused(self, tmp_path: Path) -> None:
        other = tmp_path / "other.db"
        with sqlite3.connect(other) as db:
            db.execute("CREATE TABLE users (name TEXT)")
        db.close()
        text = tmp_path / "text.db"
        text.write_text("This is not a database. " * 100)
        for path in (other, text):
            before = path.read_bytes()
            with pytest.raises(errors.FailedPrecondition) as caught:
                await SqliteKv.open(path)
            assert caught.value.reason == "NOT_A_STORE"
            assert path.read_bytes() == before

    async def test_a_path_that_cannot_be_is_unavailable(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        for path in (tmp_path / "file" / "kv.db", tmp_path):
            with pytest.raises(errors.Unavailable):
                await SqliteKv.open(path)

    async def test_damage_is_told(self, tmp_path: Path) -> None:
        path = tmp_path / "kv.db"
        async with opened(path) as kv:
            for i in range(200):
                await kv.put(f"{i:03}", b"x" * 500)
        content = bytearray(path.read_bytes())
        content[4096 * 2 :] = b"\xa5" * (len(content) - 4096 * 2)
        path.write_bytes(content)
        with pytest.raises(errors.DataLoss):
            async with opened(path) as kv:
                await kv.range("")

    async def test_only_the_owner_can_read_it(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "kv.db") as kv:
            await kv.put("a", b"1")
            modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("kv.db", "kv.db-wal")]
        assert modes == [0o600, 0o600]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes: SQLite sees failing writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class TestTrouble:
    async def test_a_failing_disk_is_unavailable_and_loses_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "kv.db"
        async with opened(path) as kv:
            start = (await kv.put("a", b"1")).revision
            watch = kv.watch("", start)
            async with aclosing(watch):
                await anext(watch)
                with largest_file((tmp_path / "kv.db-wal").stat().st_size + 1000):
                    with pytest.raises(errors.Unavailable) as caught:
                        await kv.put("b", b"x" * 100_000)
                    assert caught.value.reason in ("OUTCOME_UNKNOWN", "STORE_IO")
                    assert (await kv.range("")).revision == start
                    await kv.check()
                revision = (await kv.put("c", b"3")).revision
                assert shown((await anext(watch)).events) == [("put", "c", b"3", revision)]
        async with opened(path) as kv:
            assert {entry.key: entry.value for entry in (await kv.range("")).entries} == {"a": b"1", "c": b"3"}

    async def test_a_full_store_first_forgets_history(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "kv.db", max_bytes=1 << 20) as kv:
            start = (await kv.put("a", b"x" * 50_000)).revision
            for _ in range(100):
                last = (await kv.put("a", b"x" * 50_000)).revision
            assert last == start + 100
            with pytest.raises(CompactedError):
                await read_watch(kv, "a", start, events=1)

    async def test_a_store_full_of_values_says_so_until_there_is_space(self, tmp_path: Path) -> None:
        path = tmp_path / "kv.db"
        async with opened(path, max_bytes=1 << 20) as kv:
            writes = [kv.put(f"{i:03}", b"x" * 50_000) for i in range(30)]
            results = await asyncio.gather(*writes, return_exceptions=True)
            written = sum(not isinstance(result, BaseException) for result in results)
            assert 10 <= written < 21
            for result in results[written:]:
                assert isinstance(result, errors.Exhausted)
                assert result.reason == "STORE_FULL"
            page = await kv.range("")
            assert [entry.key for entry in page.entries] == [f"{i:03}" for i in range(written)]
            await kv.delete("00", prefix=True)
            await kv.put("new", b"x" * 50_000)
            assert path.stat().st_size <= 1 << 20

    async def test_calls_that_wait_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sqlite, "MAX_PENDING", 5)
        async with opened(":memory:") as kv:
            results = await asyncio.gather(*(kv.put("a", b"1") for _ in range(20)), return_exceptions=True)
            refused = [result for result in results if isinstance(result, errors.Exhausted)]
            assert len(refused) == 15
            assert refused[0].reason == "QUEUE_FULL"
            assert (await kv.put("a", b"1")).succeeded

    async def test_a_caller_that_gives_up_leaves_the_store_consistent(self) -> None:
        async with opened(":memory:") as kv:
            start = (await kv.put("a", b"0")).revision
            for i in range(50):
                writing = asyncio.create_task(kv.put("a", b"%d" % i))
                await asyncio.sleep(0)
                writing.cancel()
            last = (await kv.put("a", b"last")).revision
            events = await read_until(kv, "a", start, last)
            assert [event.entry.mod_revision for event in events] == list(range(start, last + 1))
            assert events[-1].entry.value == b"last"


class TestHistory:
    async def test_old_history_is_forgotten_by_itself(self, tmp_path: Path) -> None:
        async with opened(tmp_path / "kv.db", keep_revisions=500) as kv:
            await kv.put("old", b"kept")
            for i in range(2600):
                await kv.put(f"m/{i % 10}", b"%d" % i)
            await kv.delete("m/3")
            page = await kv.range("")
            assert len(page.entries) == 10
            with pytest.raises(CompactedError) as caught:
                await read_watch(kv, "m/", 2, events=1)
            oldest = caught.value.compact_revision
            assert page.revision - 500 - 1000 <= oldest <= page.revision - 500
            kept = await kv.range("", revision=oldest)
            events = await read_until(kv, "", oldest + 1, page.revision)
            assert replay(kept.entries, events) == {entry.key: entry for entry in page.entries}
        with sqlite3.connect(tmp_path / "kv.db") as db:
            (rows,) = db.execute("SELECT count(*) FROM history").fetchone()
        db.close()
        assert rows <= 500 + 1000 + 20

    @pytest.mark.parametrize("seed", range(3))
    async def test_every_revision_after_compaction_reads_as_before(self, seed: int) -> None:
        chance = random.Random(seed)
        async with opened(":memory:") as kv:
            for _ in range(300):
                keys = chance.sample("abcdefgh", chance.randint(1, 3))
                await kv.txn([], [Put(k, chance.randbytes(3)) if chance.random() < 0.6 else Delete(k) for k in keys])
            last = (await kv.range("")).revision
            for revision in sorted(chance.sample(range(2, last + 1), 6)):
                kept = range(revision, last + 1)
                before = [await kv.range("", revision=each) for each in kept]
                events = await read_until(kv, "", revision, last)
                await kv.compact(revision)
                assert [await kv.range("", revision=each) for each in kept] == before
                assert await read_until(kv, "", revision, last) == events

    async def test_other_prefixes_do_not_wake_a_watcher_but_move_it(self) -> None:
        async with opened(":memory:") as kv:
            start = (await kv.put("m/a", b"1")).revision
            async with asyncio.timeout(TIMEOUT), aclosing(kv.watch("m/", start)) as watch:
                await anext(watch)
                reading = asyncio.ensure_future(anext(watch))
                for i in range(100):
                    await kv.put("n/a", b"%d" % i)
                await kv.compact(start + 100)
                assert not reading.done()
                last = (await kv.put("m/b", b"1")).revision
                assert shown((await reading).events) == [("put", "m/b", b"1", last)]


class TestLeases:
    async def test_time_ends_a_lease_exactly(self) -> None:
        clock = ManualClock()
        async with opened(":memory:", clock=clock) as kv:
            lease = await kv.grant_lease(10)
            start = (await kv.put("a", b"1", lease=lease)).revision
            await clock.advance(9.999)
            assert await kv.get("a") is not None
            assert await kv.renew_lease(lease) == 10
            await clock.advance(9.999)
            assert await kv.get("a") is not None
            clock.jump(0.002)
            assert await kv.get("a") is None
            with pytest.raises(errors.NotFound):
                await kv.renew_lease(lease)
            events = [event for batch in await read_watch(kv, "a", start, events=2) for event in batch.events]
            assert shown(events) == [("put", "a", b"1", start), ("delete", "a", b"", start + 1)]

    async def test_watchers_hear_of_the_end_without_any_call(self) -> None:
        clock = ManualClock()
        async with opened(":memory:", clock=clock) as kv:
            long, short = await kv.grant_lease(100), await kv.grant_lease(5)
            await kv.put("long", b"1", lease=long)
            start = (await kv.put("short", b"1", lease=short)).revision
            reading = asyncio.create_task(read_watch(kv, "", start + 1, events=1))
            await until(lambda: clock.sleeping == 1)
            await clock.advance(6)
            assert shown((await reading)[-1].events) == [("delete", "short", b"", start + 1)]
            reading = asyncio.create_task(read_watch(kv, "", start + 2, events=1))
            await until(lambda: clock.sleeping == 1)
            await clock.advance(95)
            assert shown((await reading)[-1].events) == [("delete", "long", b"", start + 2)]

    async def test_an_ended_lease_opens_a_lock_in_time(self) -> None:
        clock = ManualClock()
        async with opened(":memory:", clock=clock) as kv:
            lease = await kv.grant_lease(3)
            absent = [Compare("lock", create_revision=0)]
            assert (await kv.txn(absent, [Put("lock", b"one", lease)])).succeeded
            assert not (await kv.txn(absent, [Put("lock", b"two")])).succeeded
            clock.jump(3)
            assert (await kv.txn(absent, [Put("lock", b"two")])).succeeded


async def test_the_event_loop_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    async with opened(tmp_path / "kv.db") as kv:
        turns = 0
        writing = asyncio.create_task(_write_much(kv))
        while not writing.done():
            turns += 1
            await asyncio.sleep(0)
        assert turns > 200


async def _write_much(kv: Kv) -> None:
    for i in range(20):
        await kv.txn([], [Put(f"{i}/{j}", b"x" * 8000) for j in range(100)])
