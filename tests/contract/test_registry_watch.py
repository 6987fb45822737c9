"""The registry's event log as watchers see it, over every key-value store."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from functools import partial

import pytest

from tests.support.faulty_kv import Fault, FaultyKv
from tests.support.ports import free_ports
from tests.support.registry import DIGEST, events_from, listed, replay, serve_registry
from tests.support.wait import until
from tidemill import errors
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.clients.registry import RegistryClient
from tidemill.kv.base import Delete, Kv, Page, Put
from tidemill.kv.sqlite import SqliteKv
from tidemill.registry.keys import EVENTS


async def created(client: RegistryClient, model: str) -> bool:
    """Whether the model is there now; safe to repeat."""
    try:
        await client.create_model(model, request_id=model)
    except errors.Unavailable:
        return False
    return True


async def fill(client: RegistryClient, models: int) -> None:
    for number in range(models):
        await client.create_model(f"m{number}")


async def test_every_change_is_one_event_with_the_resource(kv: Kv) -> None:
    async with serve_registry(kv) as client:
        model = await client.create_model("digits")
        version = await client.create_version("digits", format="onnx", artifact=DIGEST)
        alias = await client.set_alias("digits", "a", 1)
        changed = await client.update_version("digits", 1, description="d")
        await client.delete_alias("digits", "a")
        await client.delete_version("digits", 1)
        await client.delete_model("digits")
        events = await events_from(client, 1, 7)
    created, updated, deleted = pb.EVENT_TYPE_CREATED, pb.EVENT_TYPE_UPDATED, pb.EVENT_TYPE_DELETED
    assert [event.type for event in events] == [created, created, created, updated, deleted, deleted, deleted]
    assert (events[0].model, events[1].model_version, events[2].alias) == (model, version, alias)
    assert events[3].model_version == changed
    assert list(changed.aliases) == ["a"]
    assert events[4].alias == alias
    assert events[5].model_version.description == "d"
    assert events[6].model.latest_version == 1


async def test_a_watch_starts_where_it_is_told(kv: Kv) -> None:
    async with serve_registry(kv) as client:
        await fill(client, 70)
        assert [event.revision for event in await events_from(client, 35, 70)] == list(range(35, 71))
        async with aclosing(client.watch()) as watch:
            first = await anext(watch)
            assert (first.revision, len(first.events)) == (70, 0)
            await client.create_model("new")
            assert [event.model.name for event in (await anext(watch)).events] == ["models/new"]


async def test_a_watch_of_one_model_skips_the_others(kv: Kv) -> None:
    async with serve_registry(kv, heartbeat=0.05) as client:
        await fill(client, 3)
        await client.create_version("m1", format="onnx", artifact=DIGEST)
        await client.create_model("m11")
        await client.set_alias("m1", "a", 1)
        await client.update_model("m2", description="last")
        events = await events_from(client, 1, 7, model="m1")
        assert [event.revision for event in events] == [2, 4, 6]


async def test_signs_of_life_come_without_events(kv: Kv) -> None:
    async with serve_registry(kv, heartbeat=0.05) as client:
        await fill(client, 1)
        async with asyncio.timeout(20), aclosing(client.watch(2)) as watch:
            for _ in range(4):
                response = await anext(watch)
                assert (response.revision, len(response.events)) == (1, 0)
            await client.create_model("new")
            while not response.events:
                response = await anext(watch)
            assert response.revision == 2


async def test_what_the_log_does_not_hold_is_out_of_range(kv: Kv) -> None:
    async with serve_registry(kv, event_retention=5) as client:
        await fill(client, 40)
        with pytest.raises(errors.OutOfRange) as trimmed:
            await events_from(client, 1, 40)
        assert trimmed.value.reason == "EVENTS_TRIMMED"
        oldest = int(trimmed.value.metadata["oldest"])
        assert 1 < oldest <= 40 - 5 + 1
        assert [event.revision for event in await events_from(client, oldest, 40)] == list(range(oldest, 41))
        with pytest.raises(errors.OutOfRange) as future:
            await events_from(client, 42, 42)
        assert future.value.reason == "FUTURE_REVISION"
        assert len((await kv.range("registry/events/")).entries) == 40 - oldest + 1
        with pytest.raises(errors.Invalid):
            await events_from(client, -1, 1)
        with pytest.raises(errors.Invalid):
            await events_from(client, 1, 1, model="../x")


async def test_a_watch_spans_restarts_of_the_registry(kv: Kv) -> None:
    [port] = free_ports(1)
    seen: list[pb.Event] = []

    async def watch(client: RegistryClient) -> None:
        async with aclosing(client.watch(1)) as responses:
            async for response in responses:
                seen.extend(response.events)
                assert not response.events or response.revision == seen[-1].revision
                if response.revision == 40:
                    return

    async with RegistryClient(f"127.0.0.1:{port}") as watcher:
        watching = asyncio.ensure_future(watch(watcher))
        for round in range(4):
            async with serve_registry(kv, port=port) as client:
                for number in range(10):
                    await until(partial(created, client, f"m{round}-{number}"))
                if round == 3:
                    await asyncio.wait_for(watching, 30)
                    oracle = await events_from(client, 1, 40)
                    assert replay(oracle).models == (await listed(client)).models
    assert seen == oracle


async def test_the_log_outlives_compaction_of_the_store(kv: Kv) -> None:
    async with serve_registry(kv) as client:
        async with aclosing(client.watch(1)) as watch:
            await anext(watch)
            await fill(client, 40)
            await kv.compact((await kv.range("")).revision)
            await fill_more(client)
            seen: list[pb.Event] = []
            while len(seen) < 41:
                seen += (await anext(watch)).events
        assert [event.revision for event in seen] == list(range(1, 42))
        assert await events_from(client, 1, 41) == seen


async def drain(watch: AsyncIterator[pb.WatchResponse]) -> None:
    async with asyncio.timeout(20):
        async for _ in watch:
            pass


async def fill_more(client: RegistryClient) -> None:
    await client.create_model("more")


async def test_the_registry_moves_to_another_store(kv: Kv) -> None:
    async with serve_registry(kv) as client:
        await fill(client, 5)
        old = await client.update_model("m1", description="d")
        await client.create_version("m1", format="onnx", artifact=DIGEST, request_id="r")
        before, events = await listed(client), await events_from(client, 1, 7)
    other = await SqliteKv.open(":memory:")
    try:
        await other.put("something", b"else")
        for entry in (await kv.range("registry/")).entries:
            await other.put(entry.key, entry.value)
        async with serve_registry(other) as client:
            assert await listed(client) == before
            assert await events_from(client, 1, 7) == events
            await client.create_version("m1", format="onnx", artifact=DIGEST, request_id="r")
            assert (await client.update_model("m1", description="e", etag=old.etag)).etag == '"8"'
    finally:
        await other.close()


async def test_a_store_that_was_set_back_ends_watches_beyond_it(kv: Kv) -> None:
    async with serve_registry(kv, heartbeat=0.1) as client:
        await fill(client, 3)
        copy = (await kv.range("registry/")).entries
        await fill_more(client)
        watch = client.watch(5)
        await anext(watch)
        await kv.txn([], [Delete("registry/", prefix=True)])
        await kv.txn([], [Put(entry.key, entry.value) for entry in copy])
        with pytest.raises(errors.OutOfRange) as lost:
            await drain(watch)
        assert lost.value.reason == "FUTURE_REVISION"


async def test_a_slow_watcher_gets_everything(kv: Kv) -> None:
    tags = {f"t{number}": "x" * 1000 for number in range(60)}
    async with serve_registry(kv) as client:
        async with aclosing(client.watch(1)) as watch:
            await anext(watch)
            await client.create_model("m")
            for number in range(120):
                await client.update_model("m", tags=tags, description=str(number))
            seen: list[str] = []
            while len(seen) < 121:
                seen += [event.model.description for event in (await anext(watch)).events]
        assert seen == ["", *map(str, range(120))]


async def test_for_a_watcher_that_stops_reading_the_log_is_not_read_on() -> None:
    kv = await SqliteKv.open(":memory:")
    reader = PageCounter(kv, lambda: Fault.NONE)
    tags = {f"t{number}": "x" * 1000 for number in range(60)}
    async with serve_registry(kv) as writer, serve_registry(reader) as client:
        call = client._registry.Watch(pb.WatchRequest(from_revision=1))
        await call.read()
        await writer.create_model("m")
        for number in range(400):
            await writer.update_model("m", tags=tags, description=str(number))
        assert reader.last < 300, "24 MB do not fit into the buffers of one connection"
        seen = 0
        while seen < 401:
            seen += len((await call.read()).events)
        call.cancel()
    await kv.close()


class PageCounter(FaultyKv):
    """Knows which event was read last."""

    last = 0

    async def range(self, prefix: str, *, start_after: str = "", limit: int = 0, revision: int = 0) -> Page:
        page = await super().range(prefix, start_after=start_after, limit=limit, revision=revision)
        if prefix == EVENTS and page.entries:
            self.last = max(self.last, int(page.entries[-1].key.removeprefix(EVENTS)))
        return page


async def test_two_registries_on_one_store_make_one_log(kv: Kv) -> None:
    async with serve_registry(kv) as one, serve_registry(kv) as two, aclosing(one.watch(1)) as watch:
        await anext(watch)
        await one.create_model("m")
        creating = (
            client.create_version("m", format="onnx", artifact=DIGEST) for client in (one, two) for _ in range(15)
        )
        made = await asyncio.gather(*creating)
        assert sorted(version.version for version in made) == list(range(1, 31))
        seen: list[pb.Event] = []
        async with asyncio.timeout(20):
            while len(seen) < 31:
                seen += (await anext(watch)).events
        assert replay(seen) == await listed(two)
