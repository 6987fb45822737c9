"""Gradients and versions that are used where they lie, in memory shared with shards: nothing is copied or mixed."""

from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.shards import first_values, gradient, shards, together, train
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.parameters import convert
from tidemill.parameters.consistency.base import Reading
from tidemill.parameters.part import Part
from tidemill.parameters.sharedmemory import Segment
from tidemill.tensors.blocks import BLOCK, Array

ELEMENTS = 5 * BLOCK + 3000


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
async def test_workers_compute_where_the_shards_share(count: int, optimizer: str) -> None:
    async with shards(count) as cluster:
        await cluster.group(ELEMENTS, workers=2, optimizer=optimizer)

        def work(worker: int) -> Array:
            with cluster.client(shared=True) as client:
                if worker == 0:
                    client.load(first_values(ELEMENTS))
                out = np.empty(ELEMENTS, np.float32)
                client.pull(0, out, worker=worker, view=True)
                for step in range(8):
                    memory = client.gradient_memory(worker)
                    assert memory is not None
                    memory[:] = gradient(ELEMENTS, worker, step)
                    client.push(memory, worker=worker, step=step, samples=0 if step == 4 else 1)
                    version, found = client.pull(step + 1, out, worker=worker, view=True)
                    assert version == step + 1
                    assert found is not out, "it was copied"
                    before = found.copy()
                    np.testing.assert_array_equal(client.pull(step + 1)[1], before)
                    with pytest.raises(ValueError, match="read-only"):
                        found[0] = 7
                return before

        def plain(worker: int) -> Array:
            with cluster.client("groups/plain") as client:
                if worker == 0:
                    client.load(first_values(ELEMENTS))
                values = client.pull(0)[1]
                for step in range(8):
                    client.push(gradient(ELEMENTS, worker, step), worker=worker, step=step, samples=int(step != 4))
                    values = client.pull(step + 1)[1]
                return values

        one, other = await together(lambda: work(0), lambda: work(1))
        await cluster.group(ELEMENTS, workers=2, optimizer=optimizer, name="groups/plain")
        expected, _ = await together(lambda: plain(0), lambda: plain(1))
        np.testing.assert_array_equal(one, expected)
        np.testing.assert_array_equal(other, expected)
        assert cluster.metric("tidemill_parameters_shared_bytes_total", direction="push") == 2 * 7 * 4 * ELEMENTS


async def test_without_shared_memory_there_is_no_view() -> None:
    async with shards(1, shared_memory=False) as cluster:
        await cluster.group(100)

        def work() -> None:
            with cluster.client(shared=True) as client:
                client.load(first_values(100))
                assert client.gradient_memory(0) is None
                out = np.empty(100, np.float32)
                assert client.pull(0, out, worker=0, view=True)[1] is out

        await together(work)


async def test_what_changes_under_its_readers_is_copied() -> None:
    async with shards(1) as cluster:
        await cluster.group(ELEMENTS, mode="asp")

        def work() -> None:
            with cluster.client(shared=True) as client:
                client.load(first_values(ELEMENTS))
                out = np.empty(ELEMENTS, np.float32)
                assert client.pull(0, out, worker=0, view=True)[1] is out
                train(client, 0, range(2))

        await together(work)


async def test_blocks_of_different_versions_are_read_from_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a push is being applied meanwhile."""
    put = convert.into_segment

    def apart(reading: Reading, part: Part, segment: Segment) -> Iterator[bytes]:
        list(put(reading, part, segment))
        for block in part.blocks:
            yield pb.PullResponse(version=block.index, block=pb.BlockData(block=block.index)).SerializeToString()

    monkeypatch.setattr(convert, "into_segment", apart)
    async with shards(1) as cluster:
        await cluster.group(ELEMENTS, mode="asp")

        def work() -> Array:
            with cluster.client(shared=True) as client:
                client.load(first_values(ELEMENTS))
                versions = np.zeros(len(client.layout.parts[0]), np.int64)
                values = client.pull(0, worker=0, versions=versions)[1]
                assert versions.tolist() == list(range(len(versions)))
                return values

        (values,) = await together(work)
        np.testing.assert_array_equal(values, first_values(ELEMENTS))
