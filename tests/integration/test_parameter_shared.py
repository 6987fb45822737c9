"""Memory that workers share with shards on their host: the same meaning as messages, and nothing of it is left."""

import gc
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.shards import GROUP, Shards, first_values, gradient, shard_processes, shards, together, train
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.clients.parameters import ParametersClient
from tidemill.rpc.status import translated
from tidemill.tensors.blocks import Array

ELEMENTS = 40_000


async def trained(shared: bool, **options: Any) -> tuple[Array, float, float]:
    """What two workers come to; bytes of gradients in messages, and in shared memory."""
    async with shards(2) as cluster:
        await cluster.group(ELEMENTS, workers=2, optimizer="momentum", **options)
        with cluster.client() as client:
            client.load(first_values(ELEMENTS))

        def work(rank: int) -> Callable[[], Array]:
            def run() -> Array:
                with cluster.client(shared=shared) as client:
                    values = np.empty(ELEMENTS, np.float32)
                    client.pull(0, values, worker=rank)
                    for step in range(8):
                        client.push(gradient(ELEMENTS, rank, step), worker=rank, step=step, samples=rank + 1)
                        client.pull(step + 1, values, worker=rank)
                    return values

            return run

        first, second = await together(*(work(rank) for rank in range(2)))
        if not options:
            assert np.array_equal(first, second)
        sent = cluster.metric("tidemill_pushed_bytes_total")
        return first, sent, cluster.metric("tidemill_parameters_shared_bytes_total", direction="push")


async def test_the_same_bits_come_of_it() -> None:
    messages, sent, none = await trained(False)
    memory, nothing, kept = await trained(True)
    assert np.array_equal(messages, memory)
    assert (sent, none) == (2 * 8 * 4 * ELEMENTS, 0)
    assert (nothing, kept) == (0, 2 * 8 * 4 * ELEMENTS)


@pytest.mark.parametrize("options", [{"mode": "asp"}, {"mode": "ssp", "staleness": 1}, {"arrival_order": True}])
async def test_every_mode_shares(options: dict[str, Any]) -> None:
    values, sent, kept = await trained(True, **options)
    assert np.isfinite(values).all()
    assert (sent, kept) == (0, 2 * 8 * 4 * ELEMENTS)


async def test_it_can_be_switched_off() -> None:
    async with shards(1, shared_memory=False) as cluster:
        await cluster.group(ELEMENTS)
        with cluster.client(shared=True) as client:
            client.load(np.zeros(ELEMENTS, np.float32))
            client.push(np.ones(ELEMENTS, np.float32), worker=0, step=0)
            client.pull(1, worker=0)
        assert cluster.metric("tidemill_pushed_bytes_total") == 4 * ELEMENTS


def sharing(cluster: Shards) -> ParametersClient:
    client = cluster.client(shared=True)
    client.pull(0, worker=0)
    return client


async def test_what_is_refused_changes_nothing() -> None:
    async with shards(1) as cluster:
        await cluster.group(ELEMENTS, workers=2, parameters={"learning_rate": 1.0})
        with cluster.client() as loader:
            loader.load(np.zeros(ELEMENTS, np.float32))
        with sharing(cluster) as client, cluster.client(shared=True) as other:
            bad = np.ones(ELEMENTS, np.float32)
            bad[-1] = np.inf
            with pytest.raises(errors.Invalid) as refused:
                client.push(bad, worker=0, step=0)
            assert refused.value.reason == "NON_FINITE"
            client.push(-np.ones(ELEMENTS, np.float32), worker=0, step=0)
            # What waits for the other worker is not touched by a push that is refused.
            with pytest.raises(errors.FailedPrecondition) as ahead:
                client.push(np.full(ELEMENTS, 7, np.float32), worker=0, step=1)
            assert ahead.value.reason == "STEP_AHEAD"
            assert client.push(-np.ones(ELEMENTS, np.float32), worker=0, step=0).duplicate
            other.push(-np.ones(ELEMENTS, np.float32), worker=1, step=0)
            assert set(client.pull(1, worker=0)[1].tolist()) == {1.0}


async def test_a_later_attempt_has_memory_of_its_own() -> None:
    async with shards(1) as cluster:
        await cluster.group(ELEMENTS, workers=2, parameters={"learning_rate": 1.0})
        with cluster.client() as loader:
            loader.load(np.zeros(ELEMENTS, np.float32))
        with cluster.client(shared=True) as zombie, cluster.client(shared=True) as heir, cluster.client() as other:
            zombie.push(np.full(ELEMENTS, 5, np.float32), worker=0, step=0)
            heir.push(-np.ones(ELEMENTS, np.float32), worker=0, step=0, attempt=1)
            with pytest.raises(errors.Stale):
                zombie.push(np.full(ELEMENTS, 9, np.float32), worker=0, step=0)
            other.push(-np.ones(ELEMENTS, np.float32), worker=1, step=0)
            assert set(heir.pull(1, worker=0, attempt=1)[1].tolist()) == {1.0}


async def test_only_who_has_attached_can_say_so() -> None:
    async with shards(1) as cluster:
        await cluster.group(ELEMENTS)
        with cluster.client() as client:
            client.load(np.zeros(ELEMENTS, np.float32))
            header = pb.PushHeader(name=GROUP, worker=0, step=0, samples=1, shared=True)
            with pytest.raises(errors.FailedPrecondition) as refused, translated():
                client._push[0](iter([pb.PushRequest(header=header).SerializeToString()]), timeout=20)
            assert refused.value.reason == "NOT_ATTACHED"
            pull = pb.PullRequest(name=GROUP, worker=0, version=0, shared=True)
            with pytest.raises(errors.FailedPrecondition) as refused, translated():
                list(client._pulling[0].Pull(pull, timeout=20))
            assert refused.value.reason == "NOT_ATTACHED"
            with pytest.raises(errors.Invalid), translated():
                client._pulling[0].Attach(pb.AttachRequest(name=GROUP, worker=5), timeout=20)
            with pytest.raises(errors.NotFound), translated():
                client._pulling[0].Attach(pb.AttachRequest(name="groups/none"), timeout=20)


async def test_memory_is_counted_and_goes_with_the_group() -> None:
    gc.collect()
    before = descriptors()
    async with shards(1, max_bytes=4 * ELEMENTS * 6) as cluster:
        # Versions, gradients and what one worker shares fit; a second worker's share does not.
        await cluster.group(ELEMENTS, workers=2)
        with cluster.client(shared=True) as client, cluster.client(shared=True) as other:
            client.load(np.zeros(ELEMENTS, np.float32))
            ones = np.ones(ELEMENTS, np.float32)
            client.push(ones, worker=0, step=0)
            other.push(ones, worker=1, step=0)
            assert client.pull(1, worker=0)[0] == 1
        assert cluster.metric("tidemill_parameters_shared_bytes_total", direction="push") == 4 * ELEMENTS
        assert cluster.metric("tidemill_pushed_bytes_total") == 4 * ELEMENTS
        assert descriptors() > before
        await cluster.admin.delete_group(GROUP)
        assert descriptors() == before


def descriptors() -> int:
    """Open shared memory of this process."""
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return sum("memfd:tidemill" in os.readlink(link) for link in links if link.is_symlink())


async def test_nothing_is_left_of_a_killed_shard(tmp_path: Path) -> None:
    before = set(os.listdir("/dev/shm"))
    async with shard_processes(tmp_path, 1) as (cluster, (process,)):
        await cluster.group(ELEMENTS)
        with cluster.client(shared=True, patience=0.1) as client:
            client.load(first_values(ELEMENTS))
            train(client, 0, range(2))
            os.kill(process.pid, signal.SIGKILL)
            with pytest.raises(errors.Unavailable):
                client.push(np.ones(ELEMENTS, np.float32), worker=0, step=2)
    assert set(os.listdir("/dev/shm")) == before
