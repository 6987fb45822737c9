"""The watch of the etcd client against every way in which a server may break it, played by a scripted server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial

import pytest

from tests.support.kv import TIMEOUT
from tests.support.scripted_etcd import Broken, Script, ScriptedEtcd, created, puts, scripted_etcd
from tests.support.wait import until
from tidemill import errors
from tidemill.api.compat.etcd.v3 import etcd_pb2 as pb
from tidemill.kv.base import CompactedError, WatchBatch
from tidemill.kv.etcd import EtcdKv


def forever() -> asyncio.Event:
    return asyncio.Event()


@asynccontextmanager
async def watching(
    *scripts: Script, from_revision: int = 5, silence: float = 10.0, max_message_bytes: int = 32 << 20
) -> AsyncIterator[tuple[ScriptedEtcd, AsyncIterator[WatchBatch]]]:
    async with scripted_etcd(*scripts) as (server, address):
        kv = EtcdKv([address], watch_silence=silence, max_message_bytes=max_message_bytes)
        try:
            async with asyncio.timeout(TIMEOUT), aclosing(kv.watch("m/", from_revision)) as watch:
                yield server, watch
        finally:
            await kv.close()


async def revisions(watch: AsyncIterator[WatchBatch], last: int) -> list[int]:
    found: list[int] = []
    async for batch in watch:
        found += [event.entry.mod_revision for event in batch.events]
        if batch.revision >= last:
            return found
    raise AssertionError("a watch ends only with an error")


async def test_a_break_right_after_creation_resumes_where_it_began() -> None:
    async with watching(
        lambda start: [created(), Broken("gone")], lambda start: [created(), puts(range(start, 2001)), forever()]
    ) as (server, watch):
        assert await revisions(watch, 2000) == list(range(5, 2001))
        assert max(server.starts) <= 5


async def test_a_break_in_a_catch_up_resumes_after_the_last_event_not_at_the_header() -> None:
    async with watching(
        lambda start: [created(), puts(range(start, 1005)), Broken("gone")],
        lambda start: [created(), puts(range(start, 2001)), forever()],
    ) as (_, watch):
        assert await revisions(watch, 2000) == list(range(5, 2001))


async def test_compacted_history_is_told() -> None:
    compacted = pb.WatchResponse(header=pb.ResponseHeader(revision=2000), canceled=True, compact_revision=50)
    async with watching(lambda start: [created(), compacted, forever()]) as (_, watch):
        with pytest.raises(CompactedError) as caught:
            await anext(watch)
        assert caught.value.compact_revision == 50


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("rpc error: code = PermissionDenied desc = etcdserver: permission denied", errors.PermissionDenied),
        ("etcdserver: invalid auth token", errors.Unauthenticated),
        ("mvcc: watcher id duplicates", errors.Unavailable),
        ("", errors.Unavailable),
    ],
)
async def test_a_cancelled_watch_raises_with_its_reason(reason: str, kind: type[errors.TidemillError]) -> None:
    canceled = pb.WatchResponse(
        header=pb.ResponseHeader(revision=2000), created=True, canceled=True, cancel_reason=reason
    )
    async with watching(lambda start: [canceled, forever()]) as (_, watch):
        with pytest.raises(kind) as caught:
            await anext(watch)
        assert (reason or "no reason given") in str(caught.value)


async def test_a_clean_end_is_a_break_too() -> None:
    async with watching(
        lambda start: [created()],
        lambda start: [created(), puts([5, 6])],
        lambda start: [created(), puts([6, 7]), forever()],
    ) as (server, watch):
        assert await revisions(watch, 7) == [5, 6, 7]
        assert len(server.starts) == 3


async def test_parts_of_a_revision_are_held_back_until_it_is_whole() -> None:
    async with watching(
        lambda start: [created(), puts([5, 6, 7, 7], fragment=True), Broken("gone")],
        lambda start: [created(), puts([6, 7, 7], fragment=True), puts([7, 8], fragment=True), puts([8]), forever()],
    ) as (_, watch):
        batches = [await anext(watch) for _ in range(3)]
        assert [[event.entry.mod_revision for event in batch.events] for batch in batches] == [
            [5, 6],
            [7, 7, 7],
            [8, 8],
        ]
        assert [batch.revision for batch in batches] == [6, 7, 8]


async def test_what_comes_twice_is_delivered_once() -> None:
    async with watching(lambda start: [created(), puts([3, 4, 5, 6]), puts([5, 6]), puts([4, 5, 6, 7]), forever()]) as (
        _,
        watch,
    ):
        assert await revisions(watch, 7) == [5, 6, 7]


async def test_the_answer_to_a_progress_request_may_overtake_events() -> None:
    overtaking = pb.WatchResponse(header=pb.ResponseHeader(revision=9), watch_id=-1)
    async with watching(
        lambda start: [created(), puts([5]), overtaking, Broken("gone")],
        lambda start: [created(), overtaking, puts(range(start, 10)), forever()],
    ) as (_, watch):
        assert await revisions(watch, 9) == [5, 6, 7, 8, 9]


async def test_a_progress_notification_moves_the_place_to_resume_from() -> None:
    progress = pb.WatchResponse(header=pb.ResponseHeader(revision=1500))
    async with watching(
        lambda start: [created(), puts([5]), progress, Broken("gone")],
        lambda start: [created(), puts([1501]), forever()],
    ) as (server, watch):
        assert await revisions(watch, 1501) == [5, 1501]
        assert server.starts[1] == 1500


async def test_a_stream_without_any_sign_of_life_is_replaced() -> None:
    async with watching(
        lambda start: [created(), puts([5]), forever()], lambda start: [created(), puts([6]), forever()], silence=0.1
    ) as (server, watch):
        assert await revisions(watch, 6) == [5, 6]
        assert server.progress_requests >= 1


async def test_a_quiet_stream_that_answers_is_kept() -> None:
    alive = pb.WatchResponse(header=pb.ResponseHeader(revision=2000), watch_id=-1)
    answered = [asyncio.Event() for _ in range(3)]
    async with watching(
        lambda start: [created(), *(step for event in answered for step in (event, alive)), puts([5]), forever()],
        silence=0.1,
    ) as (server, watch):
        reading = asyncio.create_task(revisions(watch, 5))
        for i, event in enumerate(answered):
            await until(partial(_asked, server, i + 1))
            event.set()
        assert await reading == [5]
        assert len(server.starts) == 1


def _asked(server: ScriptedEtcd, times: int) -> bool:
    return server.progress_requests >= times


async def test_a_store_that_lost_its_history_is_noticed() -> None:
    async with watching(lambda start: [created(), puts(range(5, 100)), Broken("wiped")]) as (server, watch):
        server.revision = 7
        assert len(await revisions(watch, 99)) == 95
        with pytest.raises(CompactedError):
            await anext(watch)


async def test_an_event_that_is_too_large_for_the_client_is_an_error_not_a_loop() -> None:
    large = pb.Event(kv=pb.KeyValue(key=b"m/large", mod_revision=5, value=b"x" * 100_000))
    async with watching(
        lambda start: [created(), pb.WatchResponse(header=pb.ResponseHeader(revision=5), events=[large]), forever()],
        max_message_bytes=50_000,
    ) as (_, watch):
        with pytest.raises(errors.Exhausted) as caught:
            await anext(watch)
        assert caught.value.reason == "REPLY_TOO_LARGE"
