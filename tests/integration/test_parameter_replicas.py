"""Replicated groups: a shard that is killed is missed by nobody, and one that some cannot reach is given up by all."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from tests.support.proxy import TcpProxy
from tests.support.shards import GROUP, Shards, first_values, shard_processes, shards, together, train
from tests.support.wait import until
from tidemill import errors
from tidemill.clients.parameters import ParametersClient
from tidemill.clients.replicas import BACKUP, Arbiter, LocalArbiter
from tidemill.tensors.blocks import BLOCK, Array

ELEMENTS = 2 * BLOCK + 100


def work(addresses: list[str], arbiter: Arbiter, worker: int, steps: range, shared: bool = False) -> Array:
    with ParametersClient(addresses, GROUP, shared=shared, arbiter=arbiter, patience=20) as client:
        if worker == 0 and not steps.start:
            client.load(first_values(ELEMENTS))
        return train(client, worker, steps)


async def undisturbed(steps: int) -> Array:
    async with shards(2) as cluster:
        await cluster.group(ELEMENTS, optimizer="adam", workers=2)

        def train_one(worker: int) -> Array:
            with cluster.client() as client:
                if worker == 0:
                    client.load(first_values(ELEMENTS))
                return train(client, worker, range(steps))

        return (await together(lambda: train_one(0), lambda: train_one(1)))[0]


async def version(cluster: Shards, shard: int, name: str = GROUP) -> int:
    groups = [group async for group in cluster.admin.list_groups(shard)]
    return max((group.version for group in groups if group.name == name), default=0)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("dies", [0, 1])
async def test_a_killed_shard_changes_nothing(tmp_path: Path, dies: int, shared: bool) -> None:
    async with shard_processes(tmp_path, 2) as (cluster, processes):
        await cluster.group(ELEMENTS, optimizer="adam", workers=2, durability="replicated")
        arbiter = LocalArbiter()
        workers = [
            asyncio.ensure_future(asyncio.to_thread(work, cluster.addresses, arbiter, worker, range(20), shared))
            for worker in range(2)
        ]

        async def begun() -> bool:
            return await version(cluster, dies) >= 5

        await until(begun, what="five steps")
        processes[dies].kill()
        results = await asyncio.gather(*workers)
        expected = await undisturbed(20)
        for values in results:
            np.testing.assert_array_equal(values, expected)
        # Each process had the first copy of one shard and the second one of the other.
        assert arbiter(dies, 0, 0) == (1, 1)
        assert arbiter(1 - dies, 0, 0) == (1, 0)


async def test_both_copies_have_what_was_acknowledged() -> None:
    async with shards(2) as cluster:
        await cluster.group(ELEMENTS, optimizer="adam", workers=1, durability="replicated")
        await asyncio.to_thread(work, cluster.addresses, LocalArbiter(), 0, range(3))
        second = [cluster.addresses[1], cluster.addresses[0]]

        def both() -> tuple[Array, Array]:
            with (
                ParametersClient(cluster.addresses, GROUP, arbiter=LocalArbiter()) as one,
                ParametersClient(second, f"{GROUP}{BACKUP}", arbiter=LocalArbiter()) as other,
            ):
                return one.pull(3)[1], other.pull(3)[1]

        one, other = await asyncio.to_thread(both)
        np.testing.assert_array_equal(one, other)
        await cluster.admin.delete_group(GROUP)
        assert [[group async for group in cluster.admin.list_groups(shard)] for shard in range(2)] == [[], []]


async def test_who_cannot_reach_a_copy_makes_all_give_it_up() -> None:
    """Worker 1 still reaches what worker 0 does not: it must not wait there for pushes that never come."""
    async with shards(2) as cluster:
        await cluster.group(ELEMENTS, optimizer="adam", workers=2, durability="replicated")
        arbiter = LocalArbiter()
        async with TcpProxy(cluster.addresses[0]) as proxy:
            through = [proxy.address, cluster.addresses[1]]
            first = asyncio.ensure_future(asyncio.to_thread(work, through, arbiter, 0, range(20)))
            second = asyncio.ensure_future(asyncio.to_thread(work, cluster.addresses, arbiter, 1, range(20)))

            async def begun() -> bool:
                return await version(cluster, 1) >= 5

            await until(begun, what="five steps")
            await proxy.cut()
            expected = await undisturbed(20)
            np.testing.assert_array_equal(await first, expected)
            np.testing.assert_array_equal(await second, expected)
        assert arbiter(0, 0, 0) == (1, 1)


async def test_copies_need_an_arbiter_and_a_second_shard() -> None:
    async with shards(1) as cluster:
        with pytest.raises(errors.FailedPrecondition) as refused:
            await cluster.group(10, durability="replicated")
        assert refused.value.reason == "NO_BACKUP"
    async with shards(2) as cluster:
        await cluster.group(10, durability="replicated")
        with cluster.client() as client, pytest.raises(errors.FailedPrecondition) as refused:
            _ = client.layout
        assert refused.value.reason == "NO_ARBITER"


def test_one_copy_wins_each_term() -> None:
    arbiter = LocalArbiter()
    assert arbiter(0, 0, 0) == (0, 0)
    assert arbiter(0, 1, 1) == (1, 1)
    assert arbiter(0, 1, 0) == (1, 1)
    assert arbiter(0, 3, 0) == (1, 1)
    assert arbiter(1, 1, 0) == (1, 0)
