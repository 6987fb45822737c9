"""Every gradient counts once, and what is wrong with a push changes nothing."""

import asyncio
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.proxy import TcpProxy
from tests.support.shards import (
    GROUP,
    Shards,
    Wire,
    block,
    first_values,
    gradient,
    header,
    shards,
    together,
    wire,
)
from tests.support.wait import until
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.clients.parameters import ParametersClient, PushOutcome
from tidemill.rpc.status import from_rpc_error
from tidemill.tensors.blocks import Array

ELEMENTS = 2500
BLOCK = 700
"""Two shards have two blocks each: 0 and 2 of 700 elements; 1 of 700 and 3 of 400."""


def whole(values: Array, group: pb.Group) -> list[pb.PushRequest]:
    """The messages of all blocks of a shard."""
    return [block(b.index, values[b.offset : b.offset + b.elements]) for b in group.blocks]


async def prepared(cluster: Shards, *, workers: int = 2, optimizer: str = "momentum") -> list[pb.Group]:
    """A group of `ELEMENTS` in blocks of `BLOCK`, with first values."""
    groups = await cluster.group_of_blocks(ELEMENTS, BLOCK, workers=workers, optimizer=optimizer)
    with cluster.client() as client:
        client.load(first_values(ELEMENTS))
    return groups


async def once(steps: int, workers: int) -> Array:
    """The parameters when every gradient is sent exactly once."""
    async with shards(2) as cluster:
        await prepared(cluster, workers=workers)
        with cluster.client() as client:
            for step in range(steps):
                for rank in range(workers):
                    client.push(gradient(ELEMENTS, rank, step), worker=rank, step=step)
            return client.pull(steps)[1]


async def test_duplicates_count_once_however_they_are_interleaved() -> None:
    steps, workers = 5, 3
    expected = await once(steps, workers)
    async with shards(2) as cluster:
        groups = await prepared(cluster, workers=workers)
        chance = random.Random(4)
        repeated = 0
        with wire(cluster.addresses[0]) as left, wire(cluster.addresses[1]) as right:
            for step in range(steps):
                # Every push of this step 1 to 5 times, and some of earlier ones, in any order.
                sends = [(rank, step) for rank in range(workers) for _ in range(chance.randint(1, 5))]
                sends += [(chance.randrange(workers), chance.randrange(step)) for _ in range(3 if step else 0)]
                chance.shuffle(sends)
                done: set[tuple[int, int]] = {(rank, old) for rank in range(workers) for old in range(step)}
                for rank, of in sends:
                    for shard, one in enumerate((left, right)):
                        response = one.push(header(rank, of), *whole(gradient(ELEMENTS, rank, of), groups[shard]))
                        assert response.duplicate == ((rank, of) in done)
                    repeated += (rank, of) in done
                    done.add((rank, of))
        with cluster.client() as client:
            version, values = client.pull()
        assert version == steps
        np.testing.assert_array_equal(values, expected)
        assert [g.duplicates for g in await cluster.admin.get_group(GROUP)] == [repeated, repeated]
        assert cluster.metric("tidemill_pushes_total", outcome="duplicate") == 2 * repeated


async def test_duplicates_at_the_same_time_count_once() -> None:
    steps, workers = 5, 2
    expected = await once(steps, workers)
    async with shards(2) as cluster:
        await prepared(cluster, workers=workers)

        def worker(rank: int) -> None:
            with cluster.client() as client:
                for step in range(steps):
                    client.push(gradient(ELEMENTS, rank, step), worker=rank, step=step)
                    client.pull(step + 1)

        # Three processes that all believe to be the same worker.
        await together(*(lambda rank=rank: worker(rank) for rank in range(workers) for _ in range(3)))
        with cluster.client() as client:
            np.testing.assert_array_equal(client.pull(steps)[1], expected)


async def test_a_lost_acknowledgement_is_asked_for_again_and_applied_once() -> None:
    expected = await once(3, 1)
    async with shards(2) as cluster, TcpProxy(cluster.addresses[0]) as lossy:
        await prepared(cluster, workers=1)
        through = Shards([lossy.address, cluster.addresses[1]], cluster.admin, cluster.apps)

        async def push_unheard(client: ParametersClient, step: int) -> PushOutcome:
            lossy.blackhole(up=False, down=True)
            own = gradient(ELEMENTS, 0, step)
            pushing = asyncio.ensure_future(asyncio.to_thread(client.push, own, worker=0, step=step))
            await until(lambda: applied(cluster, step + 1), what="the push is applied")
            assert not pushing.done()
            await lossy.reset()
            lossy.restore()
            return await pushing

        with through.client() as client:
            # Again, which changes nothing: both connections stand before answers get lost.
            await asyncio.to_thread(client.load, first_values(ELEMENTS))
            outcomes = [await push_unheard(client, step) for step in range(3)]
        # The other shard took each push the first time, so none was a repetition everywhere.
        assert [(outcome.duplicate, outcome.version) for outcome in outcomes] == [(False, 1), (False, 2), (False, 3)]
        groups = await cluster.admin.get_group(GROUP)
        assert [group.version for group in groups] == [3, 3]
        assert groups[0].duplicates == 3
        with cluster.client() as client:
            np.testing.assert_array_equal(client.pull(3)[1], expected)


async def applied(cluster: Shards, version: int) -> bool:
    return (await cluster.admin.get_group(GROUP))[0].version == version


async def test_a_push_cut_in_the_middle_is_sent_again() -> None:
    elements = 3 * 2**18
    async with shards() as cluster:
        await cluster.group(elements, parameters={"learning_rate": 1.0})
        async with TcpProxy(cluster.addresses[0]) as cut:
            through = Shards([cut.address], cluster.admin, cluster.apps)
            with through.client() as client:
                await together(lambda: client.load(np.zeros(elements, np.float32)))
                before = cut.bytes_up
                cut.rate_limit(2e6)
                values = np.full(elements, -1, np.float32)
                pushing = asyncio.ensure_future(together(lambda: client.push(values, worker=0, step=0)))
                await until(lambda: cut.bytes_up > before + 300_000)
                await cut.reset()
                cut.restore()
                (outcome,) = await pushing
                assert (outcome.duplicate, outcome.version) == (False, 1)
                ((_, pulled),) = await together(lambda: client.pull(1))
                np.testing.assert_array_equal(pulled, np.ones(elements))


async def test_an_unreachable_shard_is_given_up_in_the_end() -> None:
    async with shards() as cluster:
        await prepared(cluster, workers=1)
        async with TcpProxy(cluster.addresses[0]) as cut:
            through = Shards([cut.address], cluster.admin, cluster.apps)
            with through.client(patience=0.5) as client:
                await together(lambda: client.layout)
                await cut.cut()
                with pytest.raises(errors.Unavailable):
                    await together(lambda: client.push(gradient(ELEMENTS, 0, 0), worker=0, step=0))


Case = Callable[[list[pb.PushRequest]], list[pb.PushRequest]]
NAN = np.full(BLOCK, np.nan, np.float32)
REFUSED: dict[str, tuple[Case, type[errors.TidemillError], str]] = {
    "nan": (lambda m: [*m[:2], block(2, NAN)], errors.Invalid, "NON_FINITE"),
    "infinity": (lambda m: [m[0], edited(m[1], -np.inf), m[2]], errors.Invalid, "NON_FINITE"),
    "unknown block": (lambda m: [*m, block(1, NAN)], errors.Invalid, "UNKNOWN_BLOCK"),
    "negative block": (lambda m: [m[0], block(-1, NAN)], errors.Invalid, "UNKNOWN_BLOCK"),
    "block twice": (lambda m: [*m, m[1]], errors.Invalid, "REPEATED_BLOCK"),
    "missing block": (lambda m: m[:2], errors.Invalid, "MISSING_BLOCKS"),
    "no block": (lambda m: m[:1], errors.Invalid, "MISSING_BLOCKS"),
    "too short": (lambda m: [m[0], m[1], block(2, m[2].block.data[:-4])], errors.Invalid, "SIZE_MISMATCH"),
    "too long": (lambda m: [m[0], m[1], block(2, m[2].block.data + b"\0" * 4)], errors.Invalid, "SIZE_MISMATCH"),
    "part of a number": (lambda m: [m[0], m[1], block(2, m[2].block.data[:-1])], errors.Invalid, "SIZE_MISMATCH"),
    "empty": (lambda m: [m[0], m[1], block(2, b"")], errors.Invalid, "SIZE_MISMATCH"),
    "no header": (lambda m: m[1:], errors.Invalid, "MISSING_HEADER"),
    "nothing": (lambda m: [], errors.Invalid, "MISSING_HEADER"),
    "an empty message": (lambda m: [*m, pb.PushRequest()], errors.Invalid, "MISSING_BLOCK"),
    "header twice": (lambda m: [m[0], m[0], *m[1:]], errors.Invalid, "MISSING_BLOCK"),
    "rank too high": (lambda m: [header(2), *m[1:]], errors.Invalid, "UNKNOWN_RANK"),
    "negative rank": (lambda m: [header(-1), *m[1:]], errors.Invalid, "UNKNOWN_RANK"),
    "step ahead": (lambda m: [header(1, 2, attempt=3), *m[1:]], errors.FailedPrecondition, "STEP_AHEAD"),
    "negative step": (lambda m: [header(1, -1), *m[1:]], errors.Invalid, "INVALID_ARGUMENT"),
    "negative attempt": (lambda m: [header(1, 1, attempt=-1), *m[1:]], errors.Invalid, "INVALID_ARGUMENT"),
    "negative samples": (lambda m: [header(1, 1, samples=-1), *m[1:]], errors.Invalid, "INVALID_ARGUMENT"),
    "too many samples": (lambda m: [header(1, 1, samples=2**41), *m[1:]], errors.Invalid, "INVALID_ARGUMENT"),
    "stale attempt": (lambda m: [header(1, 1, attempt=2), *m[1:]], errors.Stale, "STALE_ATTEMPT"),
    "other group": (lambda m: [header(1, 1, name="groups/other"), *m[1:]], errors.NotFound, "NOT_FOUND"),
    "bad name": (lambda m: [header(1, 1, name="groups/../g"), *m[1:]], errors.Invalid, "INVALID_NAME"),
    "oversize chunk": (lambda m: [m[0], block(0, b"\0" * (2 << 20))], errors.Exhausted, "RESOURCE_EXHAUSTED"),
}
"""What is done to the messages of a right push of worker 1 for step 1, and how that is refused."""


def edited(message: pb.PushRequest, value: float) -> pb.PushRequest:
    values = np.frombuffer(message.block.data, np.float32).copy()
    values[-1] = value
    return block(message.block.block, values)


@pytest.mark.parametrize("case", list(REFUSED))
async def test_what_is_wrong_is_refused_whole(case: str) -> None:
    spoil, kind, reason = REFUSED[case]
    async with shards(2) as cluster:
        groups = await prepared(cluster)
        one = gradient(ELEMENTS, 1, 1)
        with cluster.client() as client, wire(cluster.addresses[0]) as raw:
            client.push(gradient(ELEMENTS, 0, 0), worker=0, step=0)
            client.push(gradient(ELEMENTS, 1, 0), worker=1, step=0, attempt=3)
            client.push(gradient(ELEMENTS, 0, 1), worker=0, step=1)
            before = await seen(cluster, raw)
            with pytest.raises(kind) as refused:
                raw.push(*spoil([header(1, 1, attempt=3), *whole(one, groups[0])]))
            assert refused.value.reason == reason
            if reason == "NON_FINITE":
                about = {key: refused.value.metadata[key] for key in ("worker", "step")}
                assert about == {"worker": "1", "step": "1"}
                assert refused.value.metadata["block"] in ("0", "2")
            assert await seen(cluster, raw) == before
            # And the right one is still taken, as if nothing had been there.
            client.push(one, worker=1, step=1, attempt=3)
            np.testing.assert_array_equal(client.pull(2)[1], await once(2, 2))


async def seen(cluster: Shards, raw: Wire) -> tuple[Any, ...]:
    """Everything about a group that a push could change on the first shard, but its count of refusals."""
    group = raw.get()
    with cluster.client() as client:
        version, values = client.pull()
        _, state = client.state()
    arrays = [state[name][index].tobytes() for name in sorted(state) for index in sorted(state[name])]
    return group.version, list(group.arrived), group.samples, version, values.tobytes(), arrays


@pytest.mark.parametrize("blocks_sent", [0, 1, 2])
async def test_a_broken_stream_changes_nothing(blocks_sent: int) -> None:
    async with shards(2) as cluster:
        groups = await prepared(cluster, workers=1)
        with wire(cluster.addresses[0]) as raw:
            sent = threading.Event()
            never = threading.Event()

            def messages() -> Iterator[pb.PushRequest]:
                first = header()
                # With all blocks there, a cancelled stream can look like one that has ended, unless it must say so.
                first.header.has_end = blocks_sent == 2
                yield first
                yield from whole(gradient(ELEMENTS, 0, 0), groups[0])[:blocks_sent]
                sent.set()
                never.wait(30)

            call = raw.stub.Push.future(messages())
            await asyncio.to_thread(sent.wait, 30)
            # A call that is cancelled before the server has taken it is never seen there.
            method = "/tidemill.api.parameters.v1.ParameterService/Push"
            await until(lambda: cluster.metric("tidemill_rpc_in_flight", method=method) == 1)
            refused = cluster.metric("tidemill_pushes_total", outcome="refused")
            call.cancel()
            never.set()
            await until(lambda: cluster.metric("tidemill_pushes_total", outcome="refused") == refused + 1)
            group = raw.get()
            assert (group.version, list(group.arrived)) == (0, [])
            raw.push(header(), *whole(gradient(ELEMENTS, 0, 0), groups[0]))
            assert raw.get().version == 1


async def test_a_group_without_values_takes_no_gradients() -> None:
    async with shards() as cluster:
        groups = await cluster.group_of_blocks(ELEMENTS, BLOCK)
        with wire(cluster.addresses[0]) as raw, pytest.raises(errors.FailedPrecondition) as refused:
            raw.push(header(), *whole(gradient(ELEMENTS, 0, 0), groups[0]))
        assert refused.value.reason == "GROUP_EMPTY"


async def test_a_later_attempt_replaces_what_a_dead_worker_has_left() -> None:
    async with shards() as cluster:
        await prepared(cluster, workers=2, optimizer="sgd")
        with cluster.client() as client:
            client.push(gradient(ELEMENTS, 7, 0), worker=0, step=0, attempt=0)
            replaced = client.push(gradient(ELEMENTS, 0, 0), worker=0, step=0, attempt=1)
            assert not replaced.duplicate
            with pytest.raises(errors.Stale) as late:
                client.push(gradient(ELEMENTS, 7, 0), worker=0, step=0, attempt=0)
            assert late.value.reason == "STALE_ATTEMPT"
            client.push(gradient(ELEMENTS, 1, 0), worker=1, step=0)
            mean = 0.5 * gradient(ELEMENTS, 0, 0) + 0.5 * gradient(ELEMENTS, 1, 0)
            expected = first_values(ELEMENTS) - np.float32(0.01) * mean
            np.testing.assert_allclose(client.pull(1)[1], expected, rtol=1e-6)
            # The round is closed: its replacement's own gradient for it comes too late and is none the worse for it.
            assert client.push(gradient(ELEMENTS, 7, 0), worker=0, step=0, attempt=2).duplicate
            with pytest.raises(errors.Stale):
                client.push(gradient(ELEMENTS, 7, 1), worker=0, step=1, attempt=1)


async def test_a_worker_that_begins_again_takes_the_place_of_its_broken_stream() -> None:
    async with shards() as cluster:
        groups = await prepared(cluster, workers=1)
        with wire(cluster.addresses[0]) as raw:
            begun, finish = threading.Event(), threading.Event()

            def slow() -> Iterator[pb.PushRequest]:
                messages = whole(gradient(ELEMENTS, 5, 0), groups[0])
                yield header()
                yield messages[0]
                begun.set()
                finish.wait(30)
                yield from messages[1:]

            call = raw.stub.Push.future(slow())
            await asyncio.to_thread(begun.wait, 30)
            await until(lambda: cluster.metric("tidemill_pushed_bytes_total") > 0)
            raw.push(header(), *whole(gradient(ELEMENTS, 0, 0), groups[0]))
            finish.set()
            with pytest.raises(grpc.RpcError) as lost:
                await asyncio.to_thread(call.result, 30)
            error = from_rpc_error(lost.value)
            assert isinstance(error, errors.Stale)
            assert error.reason == "SUPERSEDED"
            assert raw.get().version == 1


async def test_first_values_are_taken_whole_and_once() -> None:
    async with shards(2) as cluster:
        groups = await cluster.group_of_blocks(ELEMENTS, BLOCK)

        def load(raw: Wire, *parts: pb.PushRequest, name: str = GROUP) -> pb.Group:
            def messages() -> Iterator[pb.LoadRequest]:
                for position, part in enumerate(parts):
                    yield pb.LoadRequest(name=name if position == 0 else "", block=part.block)

            try:
                return raw.stub.Load(messages(), timeout=30)
            except grpc.RpcError as error:
                raise from_rpc_error(error) from error

        right = whole(first_values(ELEMENTS), groups[0])
        with wire(cluster.addresses[0]) as raw:
            for wrong in (right[:1], [*right, right[0]], [edited(right[0], np.nan), *right[1:]], [block(9, b"")]):
                with pytest.raises(errors.Invalid):
                    load(raw, *wrong)
                assert raw.get().state == pb.Group.STATE_EMPTY
            with pytest.raises(errors.NotFound):
                load(raw, *right, name="groups/other")
            with pytest.raises(errors.Invalid):
                load(raw)
            assert load(raw, *right).state == pb.Group.STATE_READY
            assert load(raw, *right[::-1]).version == 0
            with pytest.raises(errors.FailedPrecondition) as other:
                load(raw, edited(right[0], 0.5), *right[1:])
            assert other.value.reason == "LOADED"
        with cluster.client() as client:
            client.load(first_values(ELEMENTS))
            client.push(gradient(ELEMENTS, 0, 0), worker=0, step=0)
            client.load(first_values(ELEMENTS))
            assert client.versions() == [1, 1]


async def test_deleting_a_group_ends_the_pushes_on_their_way() -> None:
    async with shards() as cluster:
        groups = await prepared(cluster, workers=1)
        with wire(cluster.addresses[0]) as raw:
            begun, finish = threading.Event(), threading.Event()

            def slow() -> Iterator[pb.PushRequest]:
                messages = whole(gradient(ELEMENTS, 0, 0), groups[0])
                yield header()
                yield messages[0]
                begun.set()
                finish.wait(30)
                yield from messages[1:]

            call = raw.stub.Push.future(slow())
            await asyncio.to_thread(begun.wait, 30)
            await until(lambda: cluster.metric("tidemill_pushed_bytes_total") > 0)
            await cluster.admin.delete_group(GROUP)
            finish.set()
            with pytest.raises(grpc.RpcError) as lost:
                await asyncio.to_thread(call.result, 30)
            assert isinstance(from_rpc_error(lost.value), errors.NotFound)
