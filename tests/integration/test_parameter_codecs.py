"""Gradients that travel encoded: what arrives is what the codec promises, once, and whole or not at all."""

import asyncio
from typing import Any

import numpy as np
import pytest

from tests.support.proxy import TcpProxy
from tests.support.shards import GROUP, Shards, block, gradient, shards, together, wire
from tests.support.wait import until
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.clients.parameters import ParametersClient
from tidemill.compression.choice import DEFAULT, Cost
from tidemill.compression.tuner import PROBE, PUSHES, SMALL, Tuner

ELEMENTS = 20_000
CLOSE = {"fp16": 1e-3, "bf16": 1e-2, "int8": 2e-2}
"""Largest error, for values of about 1."""


async def loaded(cluster: Shards, **options: Any) -> None:
    await cluster.group(ELEMENTS, parameters={"learning_rate": 1.0}, **options)
    with cluster.client() as client:
        client.load(np.zeros(ELEMENTS, np.float32))


@pytest.mark.parametrize("codec", sorted(CLOSE))
async def test_what_arrives_is_close(codec: str) -> None:
    async with shards(2) as cluster:
        await loaded(cluster)
        with cluster.client(codec=codec) as client:
            given = gradient(ELEMENTS, 0, 0)
            client.push(given, worker=0, step=0)
            found = -client.pull(1)[1]
        assert not np.array_equal(found, given)
        assert np.abs(found - given).max() < CLOSE[codec] * np.abs(given).max()
        assert cluster.metric("tidemill_pushed_bytes_total") < 0.55 * 4 * ELEMENTS


class Timed(Tuner):
    """A tuner over a line of 1 MB/s, whatever pushes take."""

    def pushed(self, elements: int, seconds: float) -> None:
        super().pushed(elements, elements * {"fp32": 4e-6, PROBE: 2e-6}[self.codec])


@pytest.mark.parametrize("wanted", ["fp32", "bf16", "int8"])
async def test_what_is_chosen_after_some_pushes_is_what_is_sent(wanted: str) -> None:
    elements = 2 * SMALL // 4
    sizes = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0}
    slow = {name: 0.0 if name == wanted or name == "fp32" else 1.0 for name in DEFAULT}
    costs = [Cost(codec=name, encode=slow[name], decode=0, size=sizes[name]) for name in DEFAULT]
    async with shards(2) as cluster:
        await cluster.group(elements, parameters={"learning_rate": 1.0})
        with cluster.client(codec="auto") as client:
            client._tuner = Timed(lambda sample: costs)
            client.load(np.zeros(elements, np.float32))
            total = np.zeros(elements)
            for step in range(2 * PUSHES + 2):
                assert (client.choice is None) == (step <= 2 * PUSHES)
                assert client.overlaps(0) == (client.choice is not None)
                before = cluster.metric("tidemill_pushed_bytes_total")
                given = gradient(elements, 0, step)
                total += given
                assert not client.push(given, worker=0, step=step).duplicate
                sent = cluster.metric("tidemill_pushed_bytes_total") - before
                codec = wanted if step >= 2 * PUSHES else PROBE if step % 2 else "fp32"
                assert sent == pytest.approx(elements * sizes[codec], rel=0.01)
            assert client.choice is not None
            assert client.choice.codec == client.codec == wanted
            np.testing.assert_allclose(-client.pull(2 * PUSHES + 2)[1], total, atol=0.2)


async def test_memory_that_is_shared_needs_no_codec() -> None:
    elements = 2 * SMALL // 4
    async with shards(2) as cluster:
        await cluster.group(elements)
        with cluster.client(codec="auto", shared=True) as client:
            client.load(np.zeros(elements, np.float32))
            client.push(gradient(elements, 0, 0), worker=0, step=0)
            assert client.choice is not None
            assert client.choice.codec == client.codec == "fp32"
            assert "shared" in client.choice.reason
        assert cluster.metric("tidemill_pushed_bytes_total") == 0


async def test_what_the_largest_few_leave_out_comes_later() -> None:
    async with shards(2) as cluster:
        await loaded(cluster)
        with cluster.client(codec="topk", codec_parameters={"fraction": 0.05}) as client:
            total = np.zeros(ELEMENTS)
            for step in range(10):
                given = gradient(ELEMENTS, 0, step)
                total += given
                # A push that is repeated is the same push: nothing is taken from the residual twice.
                for again in range(1 + step % 2):
                    assert client.push(given, worker=0, step=step).duplicate == bool(again)
            sent = -client.pull(10)[1].astype("f8")
            assert np.count_nonzero(sent) < 0.7 * ELEMENTS
            np.testing.assert_allclose(sent + client.residuals.save(), total, atol=1e-4)
        assert cluster.metric("tidemill_pushed_bytes_total") < 10 * 0.11 * 4 * ELEMENTS


async def test_a_push_cut_in_the_middle_is_sent_again_as_it_was() -> None:
    elements = 16 * 2**18
    async with shards(1) as cluster:
        await cluster.group(elements, parameters={"learning_rate": 1.0})
        given = gradient(elements, 0, 0)
        async with TcpProxy(cluster.addresses[0]) as cut:
            through = Shards([cut.address], cluster.admin, cluster.apps)
            with through.client(codec="topk", codec_parameters={"fraction": 0.1}) as client:
                await together(lambda: client.load(np.zeros(elements, np.float32)))
                before = cut.bytes_up
                cut.rate_limit(2e6)
                pushing = asyncio.ensure_future(together(lambda: client.push(given, worker=0, step=0)))
                await until(lambda: cut.bytes_up > before + 300_000)
                await cut.reset()
                cut.restore()
                (outcome,) = await pushing
                assert (outcome.duplicate, outcome.version) == (False, 1)
                ((_, values),) = await together(lambda: client.pull(1))
                np.testing.assert_allclose(client.residuals.save() - values, given, atol=1e-6)


async def test_what_is_badly_encoded_is_refused_whole() -> None:
    async with shards(1) as cluster:
        await loaded(cluster)
        groups = await cluster.admin.get_group(GROUP)
        counts = [one.elements for one in groups[0].blocks]
        with wire(cluster.addresses[0]) as raw:
            for codec, reason in (("bf16", "SIZE_MISMATCH"), ("topk", ""), ("nothing", "UNKNOWN_CODEC")):
                first = pb.PushRequest(header=pb.PushHeader(name=GROUP, worker=0, samples=1, codec=codec))
                pieces = [block(index, bytes(3)) for index in range(len(counts))]
                with pytest.raises(errors.Invalid) as refused:
                    raw.push(first, *pieces)
                assert refused.value.reason == reason or not reason
            assert raw.get().version == 0
    with pytest.raises(errors.Invalid):
        ParametersClient(["127.0.0.1:1"], GROUP, codec="moon")
    with pytest.raises(errors.Invalid):
        ParametersClient(["127.0.0.1:1"], GROUP, codec="topk", codec_parameters={"fraction": 2.0})


async def test_shared_memory_is_exact_whatever_the_codec() -> None:
    async with shards(1) as cluster:
        await loaded(cluster)
        with cluster.client(shared=True, codec="int8") as client:
            given = gradient(ELEMENTS, 0, 0)
            client.push(given, worker=0, step=0)
            assert np.array_equal(-client.pull(1, worker=0)[1], given)
