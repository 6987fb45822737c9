"""Pushes that leave while the gradient is still being computed: the same bits, and nothing before they are whole."""

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from typing import Any

import numpy as np
import pytest

from tests.support.proxy import TcpProxy
from tests.support.shards import GROUP, Shards, first_values, gradient, shards, together, train
from tests.support.wait import until
from tidemill import errors
from tidemill.clients import encoded, parameters
from tidemill.clients.parameters import Outgoing, ParametersClient
from tidemill.clients.replicas import LocalArbiter
from tidemill.tensors.blocks import BLOCK, Array

ELEMENTS = 20_000
STEPS = 5
CODECS = ("fp32", "bf16", "int8", "topk")


class Backward:
    """Makes a gradient from its end to its front, in tensors of odd sizes; what is not there yet is NaN."""

    def __init__(self, client: ParametersClient, worker: int, step: int, attempt: int = 0) -> None:
        elements = client.layout.elements
        self._given = gradient(elements, worker, step)
        self._flat = np.full(elements, np.nan, np.float32)
        self._left = elements
        self.push: Outgoing = client.begin_push(self._flat, worker=worker, step=step, attempt=attempt)

    def compute(self, elements: int) -> None:
        """Make so many more elements."""
        start = max(self._left - elements, 0)
        self._flat[start : self._left] = self._given[start : self._left]
        self.push.ready(start, self._left)
        self._left = start

    def finish(self) -> Outgoing:
        """Make all that is left."""
        while self._left:
            self.compute(777)
        return self.push


def overlapped(client: ParametersClient, worker: int, steps: range) -> Array:
    """Like `train`."""
    values = client.pull(steps.start)[1]
    for step in steps:
        client.exchange(Backward(client, worker, step).finish(), step + 1, values, worker=worker)
    return values


async def prepared(cluster: Shards, elements: int = ELEMENTS, **options: Any) -> None:
    await cluster.group(elements, optimizer="adam", **options)
    with cluster.client() as client:
        client.load(first_values(elements))


async def result(shard_count: int, workers: int, make: Any, codec: str = "fp32", **way: Any) -> Array:
    """What so many workers train to."""

    def work(rank: int) -> Array:
        arbiter = LocalArbiter() if way.get("durability") == "replicated" else None
        with cluster.client(codec=codec, arbiter=arbiter) as client:
            if not rank:
                client.load(first_values(ELEMENTS))
            found: Array = make(client, rank, range(STEPS))
            return found

    async with shards(shard_count) as cluster:
        await cluster.group(ELEMENTS, optimizer="adam", workers=workers, **way)
        return (await together(*(lambda rank=rank: work(rank) for rank in range(workers))))[0]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shard_count", [1, 2, 3])
async def test_overlap_changes_no_bit(shard_count: int, codec: str) -> None:
    plain = await result(1, 2, train, codec)
    np.testing.assert_array_equal(await result(shard_count, 2, overlapped, codec), plain)


@pytest.mark.parametrize("way", [{"mode": "asp"}, {"mode": "ssp", "staleness": 1}, {"durability": "replicated"}])
async def test_nor_in_other_modes(way: dict[str, Any]) -> None:
    plain = await result(2, 1, train, **way)
    np.testing.assert_array_equal(await result(2, 1, overlapped, **way), plain)


async def in_flight(cluster: Shards, worker: int = 0) -> int:
    """Bytes of a worker's push that all shards have received."""
    return sum(group.members[worker].bytes_in_flight for group in await cluster.admin.get_group(GROUP))


async def test_blocks_leave_early_and_count_only_when_all_are_there() -> None:
    async with shards(2) as cluster:
        await prepared(cluster)
        with cluster.client() as client:
            backward = Backward(client, 0, 0)
            backward.compute(ELEMENTS // 2)

            async def half() -> bool:
                return await in_flight(cluster) >= 4 * (ELEMENTS // 2 - 2 * 3072)

            await until(half, what="half of the gradient is there")
            client.versions()  # other calls are not held up
            push = backward.finish()

            async def whole() -> bool:
                return await in_flight(cluster) == 4 * ELEMENTS

            await until(whole, what="the whole gradient is there")
            assert client.versions() == [0, 0]
            assert not push.finish().duplicate
            assert client.versions() == [1, 1]


async def test_what_is_cancelled_has_changed_nothing() -> None:
    async with shards(2) as cluster:
        await prepared(cluster)
        with cluster.client(codec="topk") as client, cluster.client(codec="topk") as other:
            push = Backward(client, 0, 0).finish()

            async def there() -> bool:
                return await in_flight(cluster) > 0

            await until(there, what="something is there")
            push.cancel()

            async def gone() -> bool:
                return await in_flight(cluster) == 0

            await until(gone, what="the shards have let go of it")
            assert client.versions() == [0, 0]
            assert not np.any(client.residuals.save())
            # The same step again, with another gradient: nothing of the first one is left.
            given = gradient(ELEMENTS, 1, 0)
            assert not client.push(given, worker=0, step=0).duplicate
            found = client.pull(1)[1]
            sent = client.residuals.save()
        async with shards() as alone:
            await prepared(alone)
            with alone.client(codec="topk") as other:
                other.push(given, worker=0, step=0)
                np.testing.assert_array_equal(found, other.pull(1)[1])
                np.testing.assert_array_equal(sent, other.residuals.save())


@pytest.mark.parametrize("codec", CODECS)
async def test_a_stream_that_breaks_in_the_middle_changes_no_bit(codec: str) -> None:
    plain = await result(2, 1, train, codec)
    async with shards(2) as cluster, TcpProxy(cluster.addresses[1]) as cut:
        await prepared(cluster)
        through = Shards([cluster.addresses[0], cut.address], cluster.admin, cluster.apps)
        with through.client(codec=codec) as client:
            values = (await together(lambda: client.pull(0)))[0][1]
            for step in range(STEPS):
                backward = Backward(client, 0, step)
                backward.compute(ELEMENTS // 2)

                async def there() -> bool:
                    return (await cluster.admin.get_group(GROUP))[1].members[0].bytes_in_flight > 0

                await until(there, what="something is there")
                await cut.reset()
                push = backward.finish()
                await asyncio.to_thread(client.exchange, push, step + 1, values, worker=0)
        np.testing.assert_array_equal(values, plain)


WORKER = """
import sys
from tests.integration.test_parameter_overlap import Backward
from tidemill.clients.parameters import ParametersClient

with ParametersClient(sys.argv[1:], "groups/g", shared=False) as client:
    backward = Backward(client, 0, 0)
    backward.compute(15_000)
    print("begun", flush=True)
    sys.stdin.read()
"""


async def test_a_worker_killed_in_the_middle_changes_no_bit() -> None:
    plain = await result(2, 1, train)
    async with shards(2) as cluster:
        await prepared(cluster)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, *cluster.addresses), stdin=PIPE, stdout=PIPE
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"begun\n"

        async def there() -> bool:
            return all(group.members[0].bytes_in_flight for group in await cluster.admin.get_group(GROUP))

        await until(there, what="something is there")
        process.kill()
        assert await process.wait() == -signal.SIGKILL
        with cluster.client() as client:
            assert client.versions() == [0, 0]
            values = client.pull(0)[1]
            for step in range(STEPS):
                push = Backward(client, 0, step, attempt=1).finish()
                client.exchange(push, step + 1, values, worker=0, attempt=1)
        np.testing.assert_array_equal(values, plain)


@pytest.mark.parametrize("codec", CODECS)
async def test_what_is_not_finite_is_refused_whole(codec: str) -> None:
    async with shards() as cluster:
        await prepared(cluster)
        with cluster.client(codec=codec) as client:
            given = gradient(ELEMENTS, 0, 0)
            given[ELEMENTS // 2] = np.nan
            with client.begin_push(given, worker=0, step=0) as push, pytest.raises(errors.Invalid) as caught:
                client.exchange(push, 1, worker=0)
            assert caught.value.reason == "NON_FINITE"
            with pytest.raises(errors.Invalid):
                client.push(given, worker=0, step=0)
            version, values = client.pull()
        assert version == 0
        np.testing.assert_array_equal(values, first_values(ELEMENTS))


async def test_what_one_shard_has_refused_counts_on_no_other() -> None:
    async with shards(2) as cluster:
        await prepared(cluster)
        with cluster.client() as client:
            given = gradient(ELEMENTS, 0, 0)
            given[0] = np.nan
            push = client.begin_push(given, worker=0, step=0)
            push.ready(0, ELEMENTS)
            await until(lambda: any(one.done() for one in push._running.futures), what="a shard refuses it")
            with pytest.raises(errors.Invalid):
                push.finish()
            assert client.versions() == [0, 0]


async def test_a_worker_that_is_silent_for_too_long_sends_all_when_all_is_there() -> None:
    plain = await result(2, 1, train)
    async with shards(2, silence_seconds=0.3) as cluster:
        await prepared(cluster)
        with cluster.client() as client:
            values = client.pull(0)[1]
            for step in range(STEPS):
                backward = Backward(client, 0, step)
                backward.compute(ELEMENTS // 2)

                async def there() -> bool:
                    return await in_flight(cluster) > 0

                async def gone() -> bool:
                    return not await there()

                if step == 1:
                    await until(there, what="something is there")
                    await until(gone, what="the shards have waited for long enough")
                client.exchange(backward.finish(), step + 1, values, worker=0)
        np.testing.assert_array_equal(values, plain)


async def test_a_push_that_is_refused_ends_its_pull() -> None:
    async with shards(2) as cluster:
        await prepared(cluster, workers=2)
        with cluster.client() as client:
            client.push(gradient(ELEMENTS, 0, 0), worker=0, step=0, attempt=2)
            push = Backward(client, 0, 0, attempt=1).finish()
            with pytest.raises(errors.Stale) as caught:
                client.exchange(push, 1, worker=0, attempt=1)
            assert caught.value.reason == "STALE_ATTEMPT"


async def test_a_group_that_is_deleted_ends_both() -> None:
    async with shards(2) as cluster:
        await prepared(cluster, workers=2)
        with cluster.client() as client:
            push = Backward(client, 0, 0).finish()
            going = asyncio.ensure_future(asyncio.to_thread(client.exchange, push, 1, worker=0))

            async def waits() -> bool:
                return all(group.members[0].waits_for for group in await cluster.admin.get_group(GROUP))

            await until(waits, what="the pull waits for the other worker")
            await cluster.admin.delete_group(GROUP)
            with pytest.raises(errors.NotFound):
                await going


async def test_closing_the_client_ends_what_has_begun() -> None:
    async with shards(2) as cluster:
        await prepared(cluster)
        client = cluster.client()
        push = Backward(client, 0, 0).push
        client.close()
        with pytest.raises(errors.Cancelled):
            push.finish()


async def test_gradients_must_lie_where_they_are_read() -> None:
    async with shards() as cluster:
        await prepared(cluster)
        with cluster.client() as client:
            for flat in (np.zeros(ELEMENTS), np.zeros(2 * ELEMENTS, np.float32)[::2]):
                with pytest.raises(errors.Invalid):
                    client.begin_push(flat, worker=0, step=0)
            with pytest.raises(errors.Invalid):
                client.begin_push(np.zeros(ELEMENTS, np.float32), worker=0, step=0, samples=0)


async def test_shared_memory_is_written_in_the_end() -> None:
    plain = await result(2, 1, train)
    async with shards(2) as cluster:
        await prepared(cluster)
        with cluster.client(shared=True) as client:
            assert client.overlaps(0)  # nothing is shared yet
            values = client.pull(0, worker=0)[1]
            assert not client.overlaps(0)
            for step in range(STEPS):
                push = Backward(client, 0, step).finish()
                client.exchange(push, step + 1, values, worker=0)
        np.testing.assert_array_equal(values, plain)
        assert cluster.metric("tidemill_pushed_bytes_total") == 0


async def test_nothing_leaves_early_when_that_is_not_wanted() -> None:
    for elements in (ELEMENTS, parameters.EARLY // 4):
        async with shards() as cluster:
            await prepared(cluster, elements)
            for options, wanted in (({}, True), ({"overlap": False}, False), ({"codec": "auto"}, False)):
                with cluster.client(**options) as client:
                    assert client.overlaps(0) == wanted
                    assert client.leaves_early(0) == (wanted and elements > ELEMENTS)


async def test_a_slow_shard_makes_nothing_pile_up_at_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    elements = 24 * BLOCK
    taken: list[int] = []
    encode = encoded.Encoded.__call__

    def counted(self: Any, block: Any) -> memoryview:
        taken.append(block.index)
        return encode(self, block)

    monkeypatch.setattr(encoded.Encoded, "__call__", counted)
    async with shards() as cluster, TcpProxy(cluster.addresses[0]) as slow:
        await prepared(cluster, elements)
        through = Shards([slow.address], cluster.admin, cluster.apps)
        with through.client() as client:
            await together(lambda: client.layout)
            slow.blackhole(up=True, down=False)
            push = client.begin_push(first_values(elements), worker=0, step=0)
            push.ready(0, elements)
            push.commit()
            await until(lambda: bool(taken), what="a block is taken")
            for _ in range(20):
                await in_flight(cluster)
            assert len(taken) <= 8  # of 24: one on its way, a few in buffers of the transport
            slow.restore()
            await asyncio.to_thread(push.finish)
        assert sorted(taken) == list(range(24))


async def test_slow_workers_have_one_gradient_each_at_a_shard() -> None:
    async with shards() as cluster:
        await prepared(cluster, workers=2)
        clients = [cluster.client() for _ in range(3)]
        # Two processes that believe to be the same worker, and another worker.
        begun = [Backward(client, worker, 0) for client, worker in zip(clients, (0, 0, 1), strict=True)]
        for backward in begun:
            backward.finish()

        async def there() -> bool:
            return await in_flight(cluster, 0) + await in_flight(cluster, 1) == 8 * ELEMENTS

        await until(there, what="a gradient of each worker is there")
        # One of the two has taken the other's place; that one waits until its gradient is whole, and sends nothing.
        assert await in_flight(cluster, 0) == await in_flight(cluster, 1) == 4 * ELEMENTS
        await together(*(backward.push.finish for backward in begun))
        with cluster.client() as client:
            assert client.versions() == [1]
        for client in clients:
            client.close()
