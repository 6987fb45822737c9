"""Tables of which a step touches some rows: little travels, and what comes out is as if all had travelled."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.shards import GROUP, Shards, shards, together, wire
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.tensors.blocks import BLOCK, Array

ROWS, WIDTH = 9000, 64
TENSORS = [("before", (300,)), ("table", (ROWS, WIDTH)), ("after", (7, 11))]
DENSE = 300 + 77
ELEMENTS = DENSE + ROWS * WIDTH


def first() -> Array:
    return np.random.default_rng(1).standard_normal(ELEMENTS, dtype=np.float32)


def touched(worker: int, step: int) -> Array:
    chance = np.random.default_rng((worker, step, 2))
    return np.sort(chance.choice(ROWS, 50, replace=False)).astype(np.int64)


def gradients(worker: int, step: int) -> tuple[Array, Array]:
    chance = np.random.default_rng((worker, step))
    return chance.standard_normal(DENSE, dtype=np.float32), chance.standard_normal((50, WIDTH), dtype=np.float32)


def parts(flat: Array) -> tuple[Array, Array]:
    """The dense vector and the table in a flat vector."""
    table = flat[300 : 300 + ROWS * WIDTH].reshape(ROWS, WIDTH)
    return np.concatenate([flat[:300], flat[300 + ROWS * WIDTH :]]), table


def whole(dense: Array, rows: Array, values: Array) -> Array:
    """The flat vector of gradients of which all other rows are zero."""
    table = np.zeros((ROWS, WIDTH), np.float32)
    table[rows] = values
    return np.concatenate([dense[:300], table.reshape(-1), dense[300:]])


async def run(count: int, work: Callable[[Shards, int], Any], workers: int = 2, **way: Any) -> list[Any]:
    async with shards(count) as cluster:
        await cluster.group(TENSORS, workers=workers, **way)
        with cluster.client() as client:
            client.load(first())
        return await together(*[lambda worker=worker: work(cluster, worker) for worker in range(workers)])


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("count", [1, 3])
async def test_rows_come_to_what_whole_gradients_come_to(optimizer: str, count: int) -> None:
    def sparse(cluster: Shards, worker: int) -> Array:
        with cluster.client() as client:
            for step in range(6):
                dense, values = gradients(worker, step)
                rows = touched(worker, step)
                client.push_rows(dense, {"table": (rows, values)}, worker=worker, step=step, samples=worker + 1)
                version, got, found = client.pull_rows(step + 1, {"table": rows}, worker=worker)
                assert version == step + 1
                _, flat = client.pull(step + 1)
                np.testing.assert_array_equal(got, parts(flat)[0])
                np.testing.assert_array_equal(found["table"], parts(flat)[1][rows])
            return flat

    def full(cluster: Shards, worker: int) -> Array:
        with cluster.client() as client:
            for step in range(6):
                values = whole(gradients(worker, step)[0], touched(worker, step), gradients(worker, step)[1])
                client.push(values, worker=worker, step=step, samples=worker + 1)
                flat = client.pull(step + 1)[1]
            return flat

    expected = (await run(1, full, optimizer=optimizer))[0]
    for flat in await run(count, sparse, optimizer=optimizer, sparse=["table"]):
        np.testing.assert_array_equal(flat, expected)


@pytest.mark.parametrize("mode", ["bsp", "asp"])
async def test_what_travels_is_in_proportion(mode: str) -> None:
    async with shards(2) as cluster:
        await cluster.group(TENSORS, sparse=["table"], mode=mode)
        with cluster.client() as client:
            client.load(first())

        def work() -> int:
            with cluster.client() as client:
                for step in range(4):
                    rows = touched(0, step)
                    dense, values = gradients(0, step)
                    client.push_rows(dense, {"table": (rows, values)}, worker=0, step=step)
                    client.pull_rows(step + 1, {"table": rows}, worker=0)
            return 0

        await together(work)
        exact = 4 * (4 * DENSE + 50 * (4 * WIDTH + 4))
        assert cluster.metric("tidemill_pushed_bytes_total") == exact
        assert cluster.metric("tidemill_pulled_bytes_total") < 1.2 * exact
        (group, _) = await cluster.admin.get_group(GROUP)
        assert group.sparse == [1]


async def test_a_push_that_is_wrong_changes_nothing() -> None:
    async with shards(1) as cluster:
        await cluster.group(TENSORS, sparse=["table"])
        with cluster.client() as client:
            client.load(first())
            table = next(block for block in client.layout.parts[0] if block.elements == BLOCK)
        good = (np.arange(2, dtype="<u4").tobytes(), bytes(4 * WIDTH * 2))
        bad = {
            "SIZE_MISMATCH": (good[0], good[1][:-4]),
            "BAD_ROWS": (np.array([1, 0], "<u4").tobytes(), good[1]),
            "NON_FINITE": (good[0], np.full(2 * WIDTH, np.nan, "<f4").tobytes()),
        }
        with wire(cluster.addresses[0]) as raw:
            start = pb.PushRequest(header=pb.PushHeader(name=GROUP, samples=1))
            for reason, (rows, data) in bad.items():
                block = pb.BlockData(block=table.index, rows=rows, data=data)
                with pytest.raises(errors.Invalid) as refused:
                    raw.push(start, pb.PushRequest(block=block))
                assert refused.value.reason == reason
            far = pb.BlockData(block=table.index, rows=np.array([4096], "<u4").tobytes(), data=bytes(4 * WIDTH))
            with pytest.raises(errors.Invalid, match="below 4096"):
                raw.push(start, pb.PushRequest(block=far))
            once = pb.PushRequest(block=pb.BlockData(block=table.index, rows=good[0], data=good[1]))
            with pytest.raises(errors.Invalid) as refused:
                raw.push(start, once, once)
            assert refused.value.reason == "REPEATED_BLOCK"
            with pytest.raises(errors.Invalid) as refused:
                raw.push(start, once)
            assert refused.value.reason == "MISSING_BLOCKS"
            assert raw.get().version == 0


async def test_what_cannot_be_sparse_is_refused() -> None:
    async with shards(1) as cluster:
        refusals: list[tuple[dict[str, Any], str]] = [
            ({"sparse": ["nothing"]}, "no tensor"),
            ({"sparse": ["before"]}, "two dimensions"),
            ({"sparse": ["table"], "parameters": {"weight_decay": 0.1}}, "no gradients of rows"),
            ({"sparse": ["table"], "durability": "wal"}, "log"),
            ({"sparse": ["table"], "arrival_order": True}, "order of arrival"),
        ]
        for way, problem in refusals:
            with pytest.raises(errors.Invalid, match=problem):
                await cluster.group(TENSORS, **way)
        await cluster.group(TENSORS, sparse=["table"])
        with cluster.client(shared=True) as client:
            client.load(first())
            dense, values = gradients(0, 0)
            for rows in (np.array([3, 2]), np.array([-1, 2]), np.array([0, ROWS]), np.array([1.0, 2.0])):
                with pytest.raises(errors.Invalid):
                    client.push_rows(dense, {"table": (rows, values[:2])}, worker=0, step=0)
            with pytest.raises(errors.Invalid):
                client.push_rows(dense[1:], {}, worker=0, step=0)
            with pytest.raises(errors.Invalid):
                client.pull_rows(0, {"after": np.array([0])})
            assert client.push_rows(dense, {}, worker=0, step=0).version == 1
