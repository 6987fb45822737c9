"""The etcd client over a real etcd: long histories, users, encryption and options."""

import asyncio
import subprocess
from collections.abc import Awaitable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support.etcd import EtcdServer, enable_auth, running_etcd
from tests.support.kv import TIMEOUT, Collector, etcd_kv, fresh_prefix, read_until, read_watch, replay, shown
from tests.support.proxy import TcpProxy
from tests.support.wait import until
from tidemill import errors
from tidemill.kv.base import CompactedError, Put
from tidemill.kv.etcd import EtcdKv
from tidemill.kv.etcd_connection import Tls


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


async def test_without_a_prefix_every_key_is_seen(own_etcd: EtcdServer) -> None:
    async with etcd_kv(own_etcd.address) as kv:
        start = (await kv.put("a", b"1")).revision
        await kv.put("\U0010ffff", b"2")
        assert [entry.key for entry in (await kv.range("")).entries] == ["a", "\U0010ffff"]
        assert [entry.key for entry in (await kv.range("", start_after="a")).entries] == ["\U0010ffff"]
        gone = (await kv.delete("", prefix=True)).revision
        events = await read_until(kv, "", start, gone)
        assert [event.type.value for event in events] == ["put", "put", "delete", "delete"]
        assert (await kv.range("")).entries == ()
