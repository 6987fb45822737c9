"""What is pulled is one version, whole, and waiting for it is in nobody's way."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from opentelemetry import context
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.proxy import TcpProxy
from tests.support.shards import GROUP, Shards, block, first_values, header, shards, together, wire
from tests.support.wait import until
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.clients.parameters import LATEST
from tidemill.rpc.status import translated
from tidemill.telemetry.propagation import unsampled
from tidemill.telemetry.setup import setup
from tidemill.tensors.blocks import Array

ELEMENTS = 2500
BLOCK = 300
ONES = -np.ones(ELEMENTS, np.float32)
"""With the learning rate 1, a gradient that makes every parameter the number of the version."""


async def counting(cluster: Shards, *, workers: int = 1) -> None:
    """A group whose parameters are all the number of its version."""
    await cluster.group_of_blocks(ELEMENTS, BLOCK, workers=workers, parameters={"learning_rate": 1.0})
    with cluster.client() as client:
        client.load(np.zeros(ELEMENTS, np.float32))


async def waiting(cluster: Shards, count: int) -> None:
    """Return when `count` pulls wait, or send, on the first shard."""
    method = "/tidemill.api.parameters.v1.ParameterService/Pull"
    registry = cluster.apps[0].telemetry.registry
    await until(lambda: registry.get_sample_value("tidemill_rpc_in_flight", {"method": method}) == count)


async def test_no_pull_mixes_versions() -> None:
    async with shards(2) as cluster:
        await counting(cluster)
        over = threading.Event()

        def write() -> int:
            try:
                with cluster.client() as client:
                    for step in range(60):
                        client.push(ONES, worker=0, step=step)
            finally:
                over.set()
            return 0

        def read() -> int:
            out = np.empty(ELEMENTS, np.float32)
            seen = 0
            with cluster.client() as client:
                while not over.is_set():
                    version, values = client.pull(LATEST, out)
                    assert set(values.tolist()) == {float(version)}
                    seen += 1
            return seen

        _, *seen = await together(write, read, read, read)
        assert min(seen) > 0


async def test_a_pull_that_is_being_read_stays_at_its_version() -> None:
    elements = 40 * 2**18
    async with shards() as cluster:
        await cluster.group(elements, parameters={"learning_rate": 1.0})
        minus = -np.ones(elements, np.float32)
        with cluster.client() as client, wire(cluster.addresses[0]) as raw:
            await asyncio.to_thread(client.load, np.zeros(elements, np.float32))
            slow = raw.stub.Pull(pb.PullRequest(name=GROUP, version=0), timeout=60)
            first = await asyncio.to_thread(next, slow)
            for step in range(4):  # version 0 is gone, and its memory would be taken again, if nobody read it
                await asyncio.to_thread(client.push, minus, worker=0, step=step)
            rest = await asyncio.to_thread(list, slow)
            assert [response.version for response in [first, *rest]] == [0] * 40
            assert not any(np.frombuffer(response.block.data, np.float32).any() for response in [first, *rest])
            with pytest.raises(errors.OutOfRange) as gone:
                client.pull(0)
            assert gone.value.reason == "VERSION_GONE"
            assert gone.value.metadata["latest"] == "4"


async def test_a_pull_waits_for_its_version() -> None:
    async with shards(2) as cluster:
        await cluster.group_of_blocks(ELEMENTS, BLOCK, workers=2, parameters={"learning_rate": 1.0})
        with cluster.client() as early, cluster.client() as client:
            pulls = [asyncio.ensure_future(asyncio.to_thread(early.pull, LATEST))]
            await waiting(cluster, 1)
            client.load(np.zeros(ELEMENTS, np.float32))
            assert (await pulls[0])[0] == 0
            pull = asyncio.ensure_future(asyncio.to_thread(early.pull, 1))
            await waiting(cluster, 1)
            client.push(ONES, worker=1, step=0)
            assert not pull.done()
            assert [list(group.arrived) for group in await cluster.admin.get_group(GROUP)] == [[1], [1]]
            client.push(ONES, worker=0, step=0)
            version, values = await pull
            assert version == 1
            assert set(values.tolist()) == {1.0}
            assert client.pull(0)[1].any() == np.False_
            for bad in (-2, -100):
                with pytest.raises(errors.Invalid):
                    client.pull(bad)


async def test_a_pull_gives_up_in_time_and_frees_its_thread() -> None:
    async with shards() as cluster:
        await counting(cluster)
        with cluster.client() as client:
            with pytest.raises(errors.DeadlineExceeded):
                await asyncio.to_thread(client.pull, 1, timeout=0.2)
            await waiting(cluster, 0)
            pull = asyncio.ensure_future(asyncio.to_thread(client.pull, 1))
            await waiting(cluster, 1)
        with pytest.raises(errors.Cancelled):  # the client was closed meanwhile
            await pull
        await waiting(cluster, 0)
        client.close()  # once more, which changes nothing
        with pytest.raises(errors.Cancelled):
            client.pull(0)


async def test_a_replacement_finds_all_shards_at_the_same_version() -> None:
    async with shards(2) as cluster:
        await counting(cluster, workers=2)
        groups = await cluster.admin.get_group(GROUP)
        with cluster.client() as client, wire(cluster.addresses[0]) as left:
            client.push(ONES, worker=0, step=0)
            client.push(ONES, worker=1, step=0)
            client.push(ONES, worker=1, step=1)
            # Worker 0 reaches the first shard only, and dies.
            left.push(header(0, 1), *(block(b.index, ONES[: b.elements]) for b in groups[0].blocks))
            assert client.versions() == [2, 1]
            assert client.pull(LATEST)[0] == 1
            # Another takes its place: it resumes at the lowest version, and the shard that is ahead knows its push.
            resumed = min(client.versions())
            values = client.pull(resumed)[1]
            assert set(values.tolist()) == {1.0}
            outcome = client.push(ONES, worker=0, step=resumed, attempt=1)
            assert (outcome.duplicate, outcome.version) == (False, 2)
            assert set(client.pull(2)[1].tolist()) == {2.0}
            assert client.versions() == [2, 2]
            with pytest.raises(errors.Stale):
                client.push(ONES, worker=0, step=2, attempt=0)


async def test_pulls_that_wait_do_not_starve_pushes() -> None:
    async with shards(threads=6, waiting_pulls=3, reserved_threads=2) as cluster:
        await counting(cluster)
        clients = [cluster.client(patience=60) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            pulls = [pool.submit(client.pull, 1) for client in clients]
            await waiting(cluster, 3)
            with cluster.client() as client, wire(cluster.addresses[0]) as raw:
                with pytest.raises(errors.Exhausted) as full, translated():
                    await asyncio.to_thread(list, raw.stub.Pull(pb.PullRequest(name=GROUP, version=1), timeout=30))
                assert full.value.reason == "TOO_MANY_WAITING"
                assert full.value.retry_after
                # What is there already is still given to whoever asks.
                assert (await asyncio.to_thread(client.pull, 0))[0] == 0
                await asyncio.to_thread(client.push, ONES, worker=0, step=0)
            for pull in pulls:
                version, values = await asyncio.wrap_future(pull)
                assert (version, set(values.tolist())) == (1, {1.0})
        for client in clients:
            client.close()


async def test_deleting_a_group_ends_all_waiting() -> None:
    async with shards(2) as cluster:
        await counting(cluster, workers=2)
        with cluster.client() as one, cluster.client() as two:
            pulls = [asyncio.ensure_future(asyncio.to_thread(client.pull, 1)) for client in (one, two)]
            await waiting(cluster, 2)
            await cluster.admin.delete_group(GROUP)
            for pull in pulls:
                with pytest.raises(errors.NotFound):
                    await pull
            with pytest.raises(errors.NotFound):
                one.push(ONES, worker=0, step=0)
            # A group of the same name is another one.
            await cluster.group_of_blocks(ELEMENTS, BLOCK)
            assert two.versions() == [0, 0]


async def test_a_shard_that_stops_lets_go_of_who_waits() -> None:
    async with shards() as cluster:
        await counting(cluster)
        with cluster.client(patience=0) as client:
            pull = asyncio.ensure_future(asyncio.to_thread(client.pull, 1))
            await waiting(cluster, 1)
            await cluster.apps[0].stop(grace=20)
            with pytest.raises(errors.Unavailable):
                await pull


async def test_a_pull_cut_in_the_middle_is_begun_again() -> None:
    elements = 4 * 2**18
    async with shards() as cluster, TcpProxy(cluster.addresses[0]) as cut:
        await cluster.group(elements)
        values = first_values(elements)
        through = Shards([cut.address], cluster.admin, cluster.apps)
        with through.client() as client:
            await asyncio.to_thread(client.load, values)
            cut.rate_limit(2e6)
            before = cut.bytes_down
            pull = asyncio.ensure_future(asyncio.to_thread(client.pull, 0))
            await until(lambda: cut.bytes_down > before + 300_000)
            await cut.reset()
            cut.restore()
            np.testing.assert_array_equal((await pull)[1], values)


async def test_a_round_is_a_span_when_its_last_push_is_sampled() -> None:
    async with shards() as cluster:
        await counting(cluster, workers=2)
        spans = InMemorySpanExporter()
        cluster.apps[0].telemetry.provider.add_span_processor(SimpleSpanProcessor(spans))
        worker = setup("worker")

        def push(step: int, rank: int, sampled: bool) -> None:
            with cluster.client(tracer=worker.tracer) as client:
                if sampled:
                    with worker.tracer.start_as_current_span("step"):
                        client.push(ONES, worker=rank, step=step)
                    return
                token = context.attach(unsampled())
                client.push(ONES, worker=rank, step=step)
                context.detach(token)

        for step, last in enumerate((False, True, False)):
            await asyncio.to_thread(push, step, 0, True)
            await asyncio.to_thread(push, step, 1, last)
        pushes = [span for span in spans.get_finished_spans() if span.name.endswith("/Push")]
        rounds = [span for span in spans.get_finished_spans() if span.name == "parameters.round"]
        assert len(pushes) == 4
        assert [span.attributes["tidemill.version"] for span in rounds if span.attributes] == [2]
        assert rounds[0].parent is not None
        closing = next(span for span in pushes if span.context.span_id == rounds[0].parent.span_id)
        assert closing.attributes is not None
        assert (closing.attributes["tidemill.worker.rank"], closing.attributes["tidemill.step"]) == (1, 1)


async def test_pushes_and_pulls_go_on_beside_each_other() -> None:
    async with shards(2) as cluster:
        await counting(cluster, workers=2)

        def worker(rank: int) -> Array:
            with cluster.client() as client, ThreadPoolExecutor(1) as pool:
                values: Any = client.pull(0)
                for step in range(10):
                    ahead = pool.submit(client.pull, step + 1)
                    client.push(ONES, worker=rank, step=step)
                    values = ahead.result(30)
                return np.asarray(values[1])

        for values in await together(lambda: worker(0), lambda: worker(1)):
            assert set(values.tolist()) == {10.0}
