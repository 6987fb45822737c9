"""The etcd client over kills, cuts, lost replies and connections that hang; the etcd is real."""

import asyncio
import shutil
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.support.etcd import EtcdServer
from tests.support.kv import TIMEOUT, Collector, etcd_kv, fresh_prefix, healthy, replay
from tests.support.ports import free_ports
from tests.support.proxy import TcpProxy
from tests.support.wait import until
from tidemill import errors
from tidemill.kv.base import CompactedError, Compare, Put
from tidemill.kv.session import LeaseSession


class TestRestarts:
    async def test_a_watch_sees_each_event_once_over_kills_while_writing(self, own_etcd: EtcdServer) -> None:
        async with etcd_kv(own_etcd.address, request_timeout=2.0) as kv, etcd_kv(own_etcd.address) as other:
            start = (await kv.put("m/start", b"")).revision
            collector = Collector(other, "m/", start)
            acknowledged: list[tuple[str, int]] = []
            stop = asyncio.Event()

            async def write(name: int) -> None:
                count = 0
                while not stop.is_set():
                    key = f"m/{name}/{count % 10}"
                    count += 1
                    try:
                        acknowledged.append((key, (await kv.put(key, b"%d" % count)).revision))
                    except errors.Unavailable:
                        await asyncio.sleep(0.01)

            writers = [asyncio.create_task(write(i)) for i in range(4)]
            for _ in range(3):
                before = len(acknowledged)
                await until(lambda enough=before + 100: len(acknowledged) >= enough)  # type: ignore[misc]
                await asyncio.to_thread(own_etcd.restart)
            before = len(acknowledged)
            await until(lambda: len(acknowledged) >= before + 50)
            stop.set()
            await asyncio.gather(*writers)
            page = await kv.range("m/")
            events = await collector.reach(page.revision)
            await collector.stop()
        assert replay([], events) == {entry.key: entry for entry in page.entries}
        assert [event.entry.mod_revision for event in events] == list(range(start, page.revision + 1))
        assert set(acknowledged) <= {(event.entry.key, event.entry.mod_revision) for event in events}

    async def test_a_store_that_was_wiped_is_noticed(self, own_etcd: EtcdServer) -> None:
        async with etcd_kv(own_etcd.address) as kv:
            last = [await kv.put("m/a", b"%d" % i) for i in range(5)][-1].revision
            async with asyncio.timeout(TIMEOUT), aclosing(kv.watch("m/", last)) as watch:
                await anext(watch)
                own_etcd.kill()
                shutil.rmtree(own_etcd.folder / "data")
                await asyncio.to_thread(own_etcd.start)
                with pytest.raises(CompactedError):
                    await anext(watch)

    async def test_a_store_that_is_not_up_yet_is_unavailable_and_then_not(self, tmp_path: Path) -> None:
        server = EtcdServer(tmp_path)
        loop = asyncio.get_running_loop()
        async with etcd_kv(server.address, request_timeout=0.5) as kv:
            collector = Collector(kv, "m/", 1)
            for call in (lambda: kv.get("a"), lambda: kv.put("a", b"1"), kv.check, lambda: kv.grant_lease(5)):
                began = loop.time()
                with pytest.raises(errors.Unavailable) as caught:
                    await call()
                assert caught.value.reason != "OUTCOME_UNKNOWN"
                assert loop.time() - began < 5
            try:
                await asyncio.to_thread(server.start)
                await until(lambda: healthy(kv))
                await collector.reach((await kv.put("m/a", b"1")).revision)
                assert len(collector.events) == 1
            finally:
                await collector.stop()
                server.kill()

    async def test_a_store_that_hangs_is_unavailable_in_time_and_unhealthy(self, own_etcd: EtcdServer) -> None:
        async with etcd_kv(own_etcd.address, request_timeout=0.5) as kv:
            await kv.put("a", b"1")
            own_etcd.pause()
            with pytest.raises(errors.Unavailable):
                await kv.check()
            with pytest.raises(errors.Unavailable):
                await kv.get("a")
            with pytest.raises(errors.Unavailable) as caught:
                await kv.put("a", b"2")
            assert caught.value.reason == "OUTCOME_UNKNOWN"
            own_etcd.resume()
            await until(lambda: healthy(kv))


class TestUnknownOutcomes:
    async def test_a_lost_reply_is_told_and_reading_back_decides(self, etcd_server: EtcdServer) -> None:
        prefix = fresh_prefix()
        async with (
            TcpProxy(etcd_server.address) as proxy,
            etcd_kv(proxy.address, prefix=prefix, request_timeout=0.5) as kv,
            etcd_kv(etcd_server.address, prefix=prefix) as direct,
        ):
            await kv.check()
            proxy.blackhole(up=False)
            writing = asyncio.create_task(kv.txn([Compare("a", create_revision=0)], [Put("a", b"mine")]))
            await until(lambda: direct.get("a"))
            with pytest.raises(errors.Unavailable) as caught:
                await writing
            assert caught.value.reason == "OUTCOME_UNKNOWN"
            proxy.restore()
            entry = await kv.get("a")
            assert entry is not None
            assert (entry.value, entry.version) == (b"mine", 1)

    async def test_a_connection_lost_after_the_write_leaves_it_unknown(self, etcd_server: EtcdServer) -> None:
        prefix = fresh_prefix()
        async with (
            TcpProxy(etcd_server.address) as proxy,
            etcd_kv(proxy.address, prefix=prefix) as kv,
            etcd_kv(etcd_server.address, prefix=prefix) as direct,
        ):
            await kv.check()
            proxy.blackhole(up=False)
            writing = asyncio.create_task(kv.put("a", b"1"))
            await until(lambda: direct.get("a"))
            await proxy.cut()
            with pytest.raises(errors.Unavailable) as caught:
                await writing
            assert caught.value.reason == "OUTCOME_UNKNOWN"
            entry = await direct.get("a")
            assert entry is not None
            assert entry.version == 1, "a write must not be sent twice"

    async def test_a_write_that_was_never_sent_is_known_not_to_be_applied(self, etcd_server: EtcdServer) -> None:
        prefix = fresh_prefix()
        async with (
            TcpProxy(etcd_server.address) as proxy,
            etcd_kv(proxy.address, prefix=prefix, request_timeout=0.5) as kv,
            etcd_kv(etcd_server.address, prefix=prefix) as direct,
        ):
            await kv.check()
            await proxy.cut()
            await until(lambda: not proxy.connections)

            async def reason() -> str:
                with pytest.raises(errors.Unavailable) as caught:
                    await kv.put("a", b"1")
                if caught.value.reason != "OUTCOME_UNKNOWN":  # the client has heard of the cut
                    assert await direct.get("a") is None
                return caught.value.reason

            while await reason() != "UNAVAILABLE":
                pass
            assert await direct.get("a") is None
            proxy.restore()
            assert (await kv.put("a", b"1")).succeeded

    async def test_reads_are_repeated_over_a_short_break(self, etcd_server: EtcdServer) -> None:
        async with TcpProxy(etcd_server.address) as proxy, etcd_kv(proxy.address, prefix=fresh_prefix()) as kv:
            await kv.put("a", b"1")
            proxy.blackhole(up=False)
            before = proxy.bytes_up
            reading = asyncio.create_task(kv.get("a"))
            await until(lambda: proxy.bytes_up > before)
            await proxy.reset()
            proxy.restore()
            entry = await reading
            assert entry is not None
            assert entry.value == b"1"


class TestFailOver:
    async def test_calls_and_watches_turn_to_another_member(self, etcd_server: EtcdServer) -> None:
        prefix = fresh_prefix()
        async with (
            TcpProxy(etcd_server.address) as one,
            TcpProxy(etcd_server.address) as two,
            etcd_kv(one.address, two.address, prefix=prefix) as kv,
        ):
            start = (await kv.put("a", b"1")).revision
            collector = Collector(kv, "a", start)
            await collector.reach(start)
            assert two.connections == 0
            for down, up in ((one, two), (two, one)):
                await down.cut()
                await until(lambda: healthy(kv))
                revision = (await kv.put("a", b"2")).revision
                await collector.reach(revision)
                assert up.connections > 0
                down.restore()
            assert len(collector.events) == 3
            await collector.stop()

    async def test_a_member_that_was_never_there_does_not_matter(self, etcd_server: EtcdServer) -> None:
        dead = f"127.0.0.1:{free_ports(1)[0]}"
        async with etcd_kv(dead, etcd_server.address, prefix=fresh_prefix()) as kv:
            assert (await kv.put("a", b"1")).succeeded

    async def test_a_half_open_connection_is_noticed(self, etcd_server: EtcdServer) -> None:
        prefix = fresh_prefix()
        async with (
            TcpProxy(etcd_server.address) as one,
            TcpProxy(etcd_server.address) as two,
            etcd_kv(one.address, two.address, prefix=prefix, watch_silence=0.2, request_timeout=2.0) as kv,
            etcd_kv(etcd_server.address, prefix=prefix) as direct,
        ):
            start = (await kv.put("a", b"1")).revision
            collector = Collector(kv, "a", start)
            await collector.reach(start)
            one.blackhole()
            await collector.reach((await direct.put("a", b"2")).revision)
            entry = await kv.get("a")
            assert entry is not None
            assert entry.value == b"2"
            await collector.stop()

    async def test_a_session_is_kept_over_a_half_open_connection(self, etcd_server: EtcdServer) -> None:
        async with (
            TcpProxy(etcd_server.address) as one,
            TcpProxy(etcd_server.address) as two,
            etcd_kv(one.address, two.address, prefix=fresh_prefix()) as kv,
            await LeaseSession.open(kv, ttl=2) as session,
        ):
            one.blackhole()
            await until(lambda: two.connections or session.lost.is_set())
            assert await until(lambda: kv.renew_lease(session.lease)) == 2
            assert session.alive
