"""Live instances, over every key-value store; expiry over the one whose clock can be moved."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.clock import ManualClock
from tests.support.ports import free_ports
from tests.support.registry import serve_registry
from tests.support.wait import until
from tidemill import errors
from tidemill.clients.instances import Registration
from tidemill.clients.registry import RegistryClient
from tidemill.kv.base import Kv
from tidemill.kv.sqlite import SqliteKv


@pytest.fixture
async def client(kv: Kv) -> AsyncIterator[RegistryClient]:
    async with serve_registry(kv) as client:
        yield client


@pytest.fixture
async def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def timed(clock: ManualClock) -> AsyncIterator[RegistryClient]:
    """A registry whose time is `clock`'s."""
    kv = await SqliteKv.open(":memory:", clock=clock)
    async with serve_registry(kv, clock=clock) as client:
        yield client
    await kv.close()


async def names(client: RegistryClient, service: str = "") -> list[str]:
    return [instance.name for instance in await client.list_instances(service)]


class TestCalls:
    async def test_an_instance_is_announced_listed_and_withdrawn(self, client: RegistryClient) -> None:
        made = await client.register_instance("parameters", "shard-0", "127.0.0.1:7104", ttl=2.5, labels={"shard": "0"})
        assert made.name == "instances/parameters.shard-0"
        assert (made.service, made.address, dict(made.labels)) == ("parameters", "127.0.0.1:7104", {"shard": "0"})
        assert made.ttl.ToMilliseconds() == 2500
        await client.register_instance("parameters", "b.c", "[::1]:1", ttl=30)
        await client.register_instance("para", "x", "host-1.example:65535", ttl=30)
        assert await client.list_instances("para") != []
        assert await names(client, "parameters") == ["instances/parameters.b.c", "instances/parameters.shard-0"]
        assert len(await names(client)) == 3
        assert await client.renew_instance(made.name, etag=made.etag) == made
        await client.deregister_instance(made.name)
        assert await names(client, "parameters") == ["instances/parameters.b.c"]
        for gone in (client.renew_instance(made.name), client.deregister_instance(made.name)):
            with pytest.raises(errors.NotFound) as missing:
                await gone
            assert missing.value.reason == "INSTANCE_NOT_FOUND"

    async def test_a_later_registration_replaces_and_the_earlier_one_cannot_touch_it(
        self, client: RegistryClient
    ) -> None:
        old = await client.register_instance("s", "i", "127.0.0.1:1", ttl=30)
        new = await client.register_instance("s", "i", "127.0.0.1:2", ttl=30)
        assert await client.list_instances() == [new]
        for outdated in (
            client.renew_instance(old.name, etag=old.etag),
            client.deregister_instance(old.name, etag=old.etag),
        ):
            with pytest.raises(errors.Stale) as replaced:
                await outdated
            assert replaced.value.reason == "INSTANCE_REPLACED"
        assert await client.list_instances() == [new]

    async def test_of_racing_registrations_one_stays(self, client: RegistryClient) -> None:
        made = await asyncio.gather(
            *(client.register_instance("s", "i", f"127.0.0.1:{port}", ttl=30) for port in range(1, 6))
        )
        [left] = await client.list_instances("s")
        assert left in made

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("service", "a.b"),
            ("service", ""),
            ("instance_id", "x" * 128),
            ("instance_id", "a..b"),
            ("address", ""),
            ("address", "127.0.0.1"),
            ("address", "127.0.0.1:0"),
            ("address", "127.0.0.1:65536"),
            ("address", "http://a:1"),
            ("address", "a b:1"),
            ("address", "a:1\n"),
            ("ttl", 1.9),
            ("ttl", 3601),
            ("labels", {"..": "x"}),
            ("labels", {"a": "x" * 1025}),
            ("labels", {f"a{number}": "x" * 1000 for number in range(3)}),
            ("labels", {f"a{number}": "" for number in range(65)}),
        ],
    )
    async def test_wrong_fields_are_named(self, client: RegistryClient, field: str, value: object) -> None:
        given = {"service": "s", "instance_id": "i", "address": "127.0.0.1:1", "ttl": 30, "labels": {}} | {field: value}
        with pytest.raises(errors.Invalid) as refused:
            await client.register_instance(**given)  # type: ignore[arg-type]
        assert [violated for violated in refused.value.violations if field in violated]
        assert await client.list_instances() == []


class TestTime:
    async def test_who_does_not_renew_is_gone(self, timed: RegistryClient, clock: ManualClock) -> None:
        made = await timed.register_instance("s", "i", "127.0.0.1:1", ttl=10)
        await timed.register_instance("s", "long", "127.0.0.1:2", ttl=100)
        await clock.advance(9)
        await timed.renew_instance(made.name)
        await clock.advance(9)
        assert len(await names(timed)) == 2
        await clock.advance(1.5)
        assert await names(timed) == ["instances/s.long"]
        with pytest.raises(errors.NotFound):
            await timed.renew_instance(made.name)

    async def test_a_registration_renews_in_time(self, timed: RegistryClient, clock: ManualClock) -> None:
        registration = Registration(
            timed, service="s", instance_id="i", address=lambda: "127.0.0.1:1", ttl=9, clock=clock
        )
        running = asyncio.ensure_future(registration.run())
        await until(lambda: registration.registered)
        [made] = await timed.list_instances()
        asleep = clock.sleeping
        for _ in range(12):
            await clock.advance(3)
            await until(lambda: clock.sleeping >= asleep)
            assert await timed.list_instances() == [made]
        await registration.withdraw()
        assert await timed.list_instances() == []
        await clock.advance(9)
        assert await timed.list_instances() == []
        running.cancel()

    async def test_a_lost_registration_is_made_anew(self, timed: RegistryClient, clock: ManualClock) -> None:
        registration = Registration(timed, service="s", instance_id="i", address="127.0.0.1:1", ttl=9, clock=clock)
        running = asyncio.ensure_future(registration.run())
        [made] = await until(timed.list_instances)
        clock.jump(20)  # the process was suspended
        [anew] = await until(timed.list_instances)
        assert anew.etag != made.etag
        running.cancel()

    async def test_a_replaced_registration_leaves_the_name_until_it_is_free(
        self, timed: RegistryClient, clock: ManualClock
    ) -> None:
        registration = Registration(timed, service="s", instance_id="i", address="127.0.0.1:1", ttl=9, clock=clock)
        running = asyncio.ensure_future(registration.run())
        await until(timed.list_instances)
        asleep = clock.sleeping
        other = await timed.register_instance("s", "i", "127.0.0.1:2", ttl=9)
        await clock.advance(3)
        await until(lambda: clock.sleeping >= asleep)
        assert await timed.list_instances() == [other]
        await clock.advance(7)

        async def back() -> bool:
            return [instance.address for instance in await timed.list_instances()] == ["127.0.0.1:1"]

        await until(lambda: clock.sleeping >= asleep)
        await clock.advance(3)
        await until(back)
        running.cancel()


async def test_a_registration_sits_out_a_registry_that_is_away() -> None:
    [port] = free_ports(1)
    kv = await SqliteKv.open(":memory:")
    empty = await SqliteKv.open(":memory:")
    async with RegistryClient(f"127.0.0.1:{port}", timeout=2) as own:
        registration = Registration(own, service="s", instance_id="i", address="127.0.0.1:1", ttl=2)
        running = asyncio.ensure_future(registration.run())
        for store in (kv, empty, kv):
            async with serve_registry(store, port=port) as client:
                await until(client.list_instances)
        assert not running.done()
        async with asyncio.timeout(20):
            await registration.withdraw()
        running.cancel()
    await kv.close()
    await empty.close()


async def test_a_registration_that_can_never_be_accepted_ends_with_the_error() -> None:
    kv = await SqliteKv.open(":memory:")
    async with serve_registry(kv) as client:
        registration = Registration(client, service="s", instance_id="i", address="nowhere", ttl=5)
        with pytest.raises(errors.Invalid):
            await registration.run()
    await kv.close()
