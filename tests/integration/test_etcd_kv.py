"""The etcd client over a real etcd, and over connections that fail in every way."""

import asyncio
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.etcd import EtcdServer, enable_auth, running_etcd
from tests.support.kv import TIMEOUT, read_until, read_watch, replay, shown
from tests.support.ports import free_ports
from tests.support.proxy import TcpProxy
from tests.support.wait import until
from tidemill import errors
from tidemill.kv.base import CompactedError, Compare, Event, Kv, Put
from tidemill.kv.etcd import EtcdKv
from tidemill.kv.etcd_connection import Tls
from tidemill.kv.session import LeaseSession


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd that the test may kill."""
    with running_etcd(tmp_path / "etcd", ["--bcrypt-cost=4"]) as server:
        yield server


@asynccontextmanager
async def etcd_kv(*endpoints: str, **options: object) -> AsyncIterator[EtcdKv]:
    kv = EtcdKv(endpoints, **options)  # type: ignore[arg-type]
    try:
        yield kv
    finally:
        await kv.close()


def fresh_prefix() -> str:
    return f"test-{uuid.uuid4()}/"


class Collector:
    """A watch that runs beside the test."""

    def __init__(self, kv: Kv, prefix: str, from_revision: int) -> None:
        self.events: list[Event] = []
        self.revision = from_revision - 1
        self._task = asyncio.create_task(self._run(kv, prefix, from_revision))

    async def _run(self, kv: Kv, prefix: str, from_revision: int) -> None:
        async with aclosing(kv.watch(prefix, from_revision)) as watch:
            async for batch in watch:
                self.events += batch.events
                self.revision = batch.revision

    async def reach(self, revision: int) -> list[Event]:
        """The events when those up to `revision` are there."""
        await until(lambda: self.revision >= revision or self._task.done(), TIMEOUT, f"revision {revision}")
        if self._task.done():
            self._task.result()
        return self.events

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


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


async def healthy(kv: Kv) -> bool:
    try:
        await kv.check()
    except errors.Unavailable:
        return False
    return True


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


class TestWatch:
    async def test_compaction_while_cut_off_is_told_and_listing_again_helps(self, etcd_server: EtcdServer) -> None:
        prefix = fresh_prefix()
        async with (
            TcpProxy(etcd_server.address) as proxy,
            etcd_kv(proxy.address, prefix=prefix) as kv,
            etcd_kv(etcd_server.address, prefix=prefix) as direct,
        ):
            start = (await kv.put("m/a", b"1")).revision
            async with asyncio.timeout(TIMEOUT), aclosing(kv.watch("m/", start)) as watch:
                await anext(watch)
                await proxy.cut()
                await direct.delete("m/a")
                last = [await direct.put("m/b", b"%d" % i) for i in range(5)][-1].revision
                await direct.compact(last)
                proxy.restore()
                with pytest.raises(CompactedError) as caught:
                    await anext(watch)
            assert caught.value.compact_revision == last
            page = await kv.range("m/")
            assert [(entry.key, entry.value) for entry in page.entries] == [("m/b", b"4")]
            newer = (await direct.put("m/c", b"1")).revision
            events = await read_until(kv, "m/", page.revision + 1, newer)
            assert shown(events) == [("put", "m/c", b"1", newer)]

    async def test_a_deletion_at_the_compacted_revision_is_not_lost_silently(self, etcd_server: EtcdServer) -> None:
        async with etcd_kv(etcd_server.address, prefix=fresh_prefix()) as kv:
            await kv.put("m/a", b"1")
            gone = (await kv.delete("m/a")).revision
            await kv.put("m/b", b"1")
            await kv.compact(gone)
            try:
                events = (await read_watch(kv, "m/", gone, events=1))[-1].events
            except CompactedError:
                return
            assert shown(events)[0] == ("delete", "m/a", b"", gone)

    async def test_breaks_in_a_long_catch_up_lose_nothing(self, etcd_server: EtcdServer) -> None:
        prefix = fresh_prefix()
        async with (
            TcpProxy(etcd_server.address) as proxy,
            etcd_kv(proxy.address, prefix=prefix) as kv,
            etcd_kv(etcd_server.address, prefix=prefix) as direct,
        ):
            start = (await direct.put("m/first", b"")).revision
            for _ in range(6):
                await asyncio.gather(*(direct.put(f"m/{i}", b"x" * 200) for i in range(500)))
            last = (await direct.put("m/last", b"")).revision
            proxy.rate_limit(2_000_000)
            collector = Collector(kv, "m/", start)
            for share in (0.1, 0.4, 0.7):
                await collector.reach(start + int(share * (last - start)))
                await proxy.reset()
            events = await collector.reach(last)
            await collector.stop()
        assert [event.entry.mod_revision for event in events] == list(range(start, last + 1))

    async def test_history_larger_than_any_one_reply(self, etcd_server: EtcdServer) -> None:
        prefix = fresh_prefix()
        async with (
            etcd_kv(etcd_server.address, prefix=prefix) as direct,
            etcd_kv(etcd_server.address, prefix=prefix, max_message_bytes=3 << 20) as kv,
        ):
            start = (await direct.put("m/first", b"")).revision
            for i in range(4):
                await direct.txn([], [Put(f"m/{i}/{j}", b"x" * 250_000) for j in range(4)])
                for j in range(3):
                    await direct.put(f"m/{i}/{j}", b"y" * 900_000)
            last = (await direct.put("m/last", b"")).revision
            events = await read_until(kv, "m/", start, last)
            page = await kv.range("m/")
            assert replay([], events) == {entry.key: entry for entry in page.entries}
            assert len(page.entries) == 18
            assert page == await direct.range("m/")
            await direct.delete("", prefix=True)


class TestUsers:
    async def test_rights_are_enforced_and_told_promptly(self, own_etcd: EtcdServer) -> None:
        enable_auth(own_etcd, user="ann", password="secret", prefix="ann/")
        own = {"username": "ann", "password": "secret"}
        async with (
            etcd_kv(own_etcd.address, prefix="ann/", **own) as allowed,
            etcd_kv(own_etcd.address, prefix="bob/", **own) as denied,
            etcd_kv(own_etcd.address, prefix="ann/") as nobody,
            etcd_kv(own_etcd.address, prefix="ann/", username="ann", password="wrong") as liar,
        ):
            start = (await allowed.put("a", b"1")).revision
            await allowed.check()
            assert shown((await read_watch(allowed, "", start, events=1))[-1].events) == [("put", "a", b"1", start)]
            for kv, kind in (
                (denied, errors.PermissionDenied),
                (nobody, (errors.Unauthenticated, errors.PermissionDenied)),
                (liar, errors.Unauthenticated),
            ):
                calls: list[Awaitable[object]] = [anext(kv.watch("", start)), kv.get("a"), kv.put("a", b"2")]
                for call in calls:
                    with pytest.raises(kind):
                        await asyncio.wait_for(call, TIMEOUT)

    async def test_a_token_that_has_expired_is_renewed(self, own_etcd: EtcdServer) -> None:
        """etcd keeps its tokens in memory, so that a restart makes them invalid."""
        enable_auth(own_etcd, user="ann", password="secret", prefix="ann/")
        async with etcd_kv(own_etcd.address, prefix="ann/", username="ann", password="secret") as kv:
            start = (await kv.put("a", b"0")).revision
            collector = Collector(kv, "", start)
            lease = await kv.grant_lease(60)
            for i in range(1, 3):
                await asyncio.to_thread(own_etcd.restart)
                await until(lambda: kv.renew_lease(lease))
                revision = (await kv.put("a", b"%d" % i)).revision
                await collector.reach(revision)
            entry = await kv.get("a")
            assert entry is not None
            assert entry.version == 3, "a write refused for its token is sent again, and applied once"
            assert len(collector.events) == 3
            await collector.stop()

    async def test_a_user_is_no_hindrance_where_there_are_none(self, etcd_server: EtcdServer) -> None:
        async with etcd_kv(etcd_server.address, prefix=fresh_prefix(), username="ann", password="x") as kv:
            revision = (await kv.put("a", b"1")).revision
            assert len(await read_watch(kv, "a", revision, events=1)) == 1


def make_certificates(folder: Path) -> None:
    """An authority, and certificates of a server and a client that it signed."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "2", "-subj", "/CN=test")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "san"]
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *signed)


async def test_connections_can_be_encrypted_both_ways(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    flags = [f"--cert-file={tmp_path}/server.crt", f"--key-file={tmp_path}/server.key"]
    flags += ["--client-cert-auth", f"--trusted-ca-file={tmp_path}/ca.crt"]
    with running_etcd(tmp_path / "etcd", flags) as server:
        trusting = Tls(ca=tmp_path / "ca.crt")
        known = Tls(ca=tmp_path / "ca.crt", cert=tmp_path / "client.crt", key=tmp_path / "client.key")
        async with etcd_kv(server.address, tls=known) as kv:
            revision = (await kv.put("a", b"1")).revision
            assert len(await read_watch(kv, "a", revision, events=1)) == 1
        for tls in (None, Tls(), trusting):
            async with etcd_kv(server.address, tls=tls, request_timeout=0.5) as kv:
                with pytest.raises(errors.Unavailable):
                    await kv.get("a")


class TestOptions:
    async def test_prefixes_keep_systems_apart(self, etcd_server: EtcdServer) -> None:
        base = fresh_prefix()
        async with (
            etcd_kv(etcd_server.address, prefix=base + "a") as a,
            etcd_kv(etcd_server.address, prefix=base + "b") as b,
        ):
            start = (await a.put("k", b"a")).revision
            await b.put("k", b"b")
            assert [(e.key, e.value) for e in (await a.range("")).entries] == [("k", b"a")]
            last = (await a.delete("", prefix=True)).revision
            assert [event.entry.key for event in await read_until(a, "", start, last)] == ["k", "k"]
            assert [(e.key, e.value) for e in (await b.range("")).entries] == [("k", b"b")]

    async def test_interceptors_see_unary_calls(self, etcd_server: EtcdServer) -> None:
        seen: list[str] = []

        class Recorder(grpc.aio.UnaryUnaryClientInterceptor):
            async def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
                method = client_call_details.method
                seen.append(method.decode() if isinstance(method, bytes) else method)
                return await continuation(client_call_details, request)

        recorder = Recorder()
        async with etcd_kv(etcd_server.address, prefix=fresh_prefix(), interceptors=[recorder]) as kv:
            revision = (await kv.put("a", b"1")).revision
            await kv.get("a")
            assert len(await read_watch(kv, "a", revision, events=1)) == 1
        assert seen == ["/etcdserverpb.KV/Txn", "/etcdserverpb.KV/Range"]

    @pytest.mark.parametrize("endpoints", [[], ["localhost"], ["host:port"], [":1"], ["a:0"], ["a:65536"]])
    async def test_endpoints_must_be_addresses(self, endpoints: list[str]) -> None:
        with pytest.raises(errors.Invalid):
            EtcdKv(endpoints)
