"""Bulk-synchronous, stale-synchronous and asynchronous groups: who sees what, and who waits for whom."""

import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.support.shards import GROUP, Shards, first_values, gradient, shards, together, train
from tests.support.wait import until
from tidemill import errors
from tidemill.clients.parameters import LATEST, ParametersClient
from tidemill.tensors.blocks import Array

ELEMENTS = 3000
STEPS = 240
"""Of all workers together, for each staleness; many more without a network in tests/unit/parameters."""


async def loaded(cluster: Shards, **options: Any) -> None:
    await cluster.group(ELEMENTS, **options)
    with cluster.client() as client:
        client.load(np.zeros(ELEMENTS, np.float32))


class Ticks:
    """The clocks of all workers, noted around their calls."""

    def __init__(self, workers: int) -> None:
        self.lock = threading.Lock()
        self.sent = [0] * workers
        self.done = [0] * workers


@pytest.mark.parametrize("staleness", [1, 3])
async def test_nobody_reads_what_is_too_old(staleness: int) -> None:
    """Each worker writes into elements of its own how many updates it has made; pulls must show enough of them."""
    workers, each = 4, STEPS // 4
    ticks = Ticks(workers)
    widest = [0] * workers

    def work(rank: int) -> Callable[[], None]:
        own = np.zeros(ELEMENTS, np.float32)
        own[rank::workers] = -1
        chance = random.Random(rank)

        def run() -> None:
            out = np.empty(ELEMENTS, np.float32)
            with cluster.client() as client:
                for clock in range(each):
                    client.pull(clock, out, worker=rank)
                    with ticks.lock:
                        sent = list(ticks.sent)
                    assert min(sent) >= clock - staleness
                    seen = [set(out[other::workers].tolist()) for other in range(workers)]
                    # Every element of a worker: nothing of an update is seen on one block and missed on another one
                    # that is as old as that.
                    assert min(map(min, seen)) >= clock - staleness
                    assert min(seen[rank]) == clock
                    widest[rank] = max(widest[rank], clock - int(min(map(min, seen))))
                    if chance.random() < 0.05:
                        threading.Event().wait(chance.random() * 0.003)
                    with ticks.lock:
                        ticks.sent[rank] += 1
                    client.push(own, worker=rank, step=clock)

        return run

    async with shards(2) as cluster:
        await loaded(cluster, workers=workers, mode="ssp", staleness=staleness, parameters={"learning_rate": 1.0})
        await together(*(work(rank) for rank in range(workers)))
        with cluster.client() as client:
            _, values = client.pull()
            assert set(values.tolist()) == {float(each)}
            assert client.clocks(3) == [each, each]
    assert 0 < max(widest) <= staleness


async def test_a_staleness_of_nothing_is_bulk_synchronous_to_the_bit() -> None:
    found: list[Array] = []
    for options in ({"mode": "ssp", "staleness": 0}, {"mode": "bsp"}):
        async with shards(2) as cluster:
            await cluster.group(ELEMENTS, workers=3, optimizer="adam", **options)
            with cluster.client() as client:
                client.load(first_values(ELEMENTS))

            def work(rank: int) -> Callable[[], Array]:
                def run() -> Array:
                    with cluster.client() as client:
                        return train(client, rank, range(20), samples=rank + 1).copy()

                return run

            first, *others = await together(*(work(rank) for rank in range(3)))
            assert all(np.array_equal(first, other) for other in others)
            found.append(first)
    assert np.array_equal(found[0], found[1])


async def test_nobody_waits_for_anybody_when_asynchronous() -> None:
    async with shards(2) as cluster:
        await loaded(cluster, workers=3, mode="asp", parameters={"learning_rate": 1.0})
        with cluster.client() as client:
            for step in range(50):
                client.push(-np.ones(ELEMENTS, np.float32), worker=1, step=step)
                version, values = client.pull(step + 1, worker=1, timeout=10)
                assert version == step + 1
                assert set(values.tolist()) == {float(step + 1)}
            assert [client.clocks(rank) for rank in range(3)] == [[0, 0], [50, 50], [0, 0]]


async def test_one_worker_alone_gets_the_same_in_every_mode() -> None:
    found = []
    for options in ({"mode": "bsp"}, {"mode": "ssp", "staleness": 2}, {"mode": "asp"}, {"arrival_order": True}):
        async with shards(2) as cluster:
            await cluster.group(ELEMENTS, optimizer="momentum", parameters={"weight_decay": 0.01}, **options)
            with cluster.client() as client:
                client.load(first_values(ELEMENTS))
                for step in range(10):
                    client.push(gradient(ELEMENTS, 0, step), worker=0, step=step)
                found.append(client.pull(10, worker=0)[1])
    assert all(np.array_equal(found[0], other) for other in found)


@pytest.mark.parametrize("mode", ["ssp", "asp"])
async def test_a_push_counts_once_however_often_it_is_sent(mode: str) -> None:
    async with shards(2) as cluster:
        await loaded(cluster, workers=2, mode=mode, staleness=int(mode == "ssp"), parameters={"learning_rate": 1.0})
        ones = -np.ones(ELEMENTS, np.float32)

        def repeat(client: ParametersClient) -> Callable[[], bool]:
            return lambda: client.push(ones, worker=0, step=0).duplicate

        clients = [cluster.client() for _ in range(3)]
        told = await together(*(repeat(client) for client in clients))
        for client in clients:
            client.close()
        assert told.count(False) >= 1
        with cluster.client() as client:
            assert client.push(ones, worker=0, step=0).duplicate
            assert set(client.pull()[1].tolist()) == {1.0}
            with pytest.raises(errors.FailedPrecondition) as ahead:
                client.push(ones, worker=0, step=5)
            assert ahead.value.reason == "STEP_AHEAD"
            # Who replaces it goes on where it was; it cannot go on itself.
            assert not client.push(ones, worker=0, step=1, attempt=1).duplicate
            with pytest.raises(errors.Stale):
                client.push(ones, worker=0, step=2)
            assert set(client.pull()[1].tolist()) == {2.0}


async def test_what_is_refused_changes_nothing() -> None:
    async with shards(2) as cluster:
        await loaded(cluster, workers=2, mode="asp")
        bad = np.ones(ELEMENTS, np.float32)
        bad[-1] = np.nan
        with cluster.client() as client:
            with pytest.raises(errors.Invalid) as refused:
                client.push(bad, worker=0, step=0)
            assert refused.value.reason == "NON_FINITE"
            with pytest.raises(errors.Invalid):
                client.pull(0, worker=9)
            with pytest.raises(errors.Invalid):
                client.clocks(2)
            assert 0 in client.clocks(0)
            bad[-1] = 1
            client.push(bad, worker=0, step=0)
            assert client.clocks(0) == [1, 1]
            assert len(set(client.pull()[1].tolist())) == 1


async def test_a_group_tells_what_its_workers_wait_for() -> None:
    async with shards(1) as cluster:
        await loaded(cluster, workers=2, mode="ssp", staleness=1)
        with cluster.client() as slow, cluster.client() as fast:
            for step in range(2):
                fast.push(np.ones(ELEMENTS, np.float32), worker=1, step=step)

            async def members() -> list[Any]:
                return list((await cluster.admin.get_group(GROUP))[0].members)

            waiting = threading.Thread(target=lambda: fast.pull(2, worker=1))
            waiting.start()
            told = await members()
            while not told[1].waits_for:
                told = await members()
            assert told[1].waits_for == "step 1 of worker 0 (at 0)"
            assert (told[0].clock, told[1].clock) == (0, 2)
            assert told[1].seen_time.seconds > 0
            slow.push(np.ones(ELEMENTS, np.float32), worker=0, step=0)
            await until(lambda: not waiting.is_alive())
            assert (await members())[1].waits_for == ""


async def test_in_order_of_arrival_all_gradients_count() -> None:
    async with shards(2) as cluster:
        await cluster.group(ELEMENTS, workers=3, arrival_order=True, parameters={"learning_rate": 1.0})
        with cluster.client() as client:
            client.load(np.zeros(ELEMENTS, np.float32))

            def work(rank: int) -> Callable[[], Array]:
                def run() -> Array:
                    with cluster.client() as client:
                        return train(client, rank, range(30), samples=rank + 1).copy()

                return run

            first, *others = await together(*(work(rank) for rank in range(3)))
            assert all(np.array_equal(first, other) for other in others)
            expected = np.zeros(ELEMENTS)
            for step in range(30):
                expected -= sum((rank + 1) / 6 * gradient(ELEMENTS, rank, step).astype("f8") for rank in range(3))
            assert np.allclose(first, expected, atol=1e-5)
            assert client.pull(LATEST)[0] == 30


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"mode": "asp", "staleness": 1}, "staleness"),
        ({"mode": "ssp", "staleness": -1}, "staleness"),
        ({"mode": "ssp", "staleness": 2**21}, "staleness"),
        ({"mode": "asp", "arrival_order": True}, "arrival_order"),
        ({"mode": "chaos"}, "mode"),
    ],
)
async def test_what_does_not_go_together_is_refused(options: dict[str, Any], field: str) -> None:
    async with shards(1) as cluster:
        with pytest.raises(errors.Invalid) as refused:
            await cluster.group(8, **options)
        assert field in str(refused.value.violations)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("mode", ["bsp", "asp"])
async def test_clipping_schedules_and_penalties_are_those_of_torch(mode: str, shared: bool) -> None:
    """One worker on one shard against PyTorch on the whole vector."""
    import torch

    async with shards(1) as cluster:
        await cluster.group(
            ELEMENTS,
            mode=mode,
            optimizer="momentum",
            parameters={"learning_rate": 0.1},
            clip_norm=2.0,
            l1=0.01,
            schedule="step",
            schedule_parameters={"every": 3, "gamma": 0.5},
        )
        values = torch.nn.Parameter(torch.from_numpy(first_values(ELEMENTS).copy()))
        optimizer = torch.optim.SGD([values], lr=0.1, momentum=0.9)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        with cluster.client(shared=shared) as client:
            client.load(first_values(ELEMENTS))
            for step in range(8):
                given = gradient(ELEMENTS, 0, step)
                client.push(given, worker=0, step=step)
                values.grad = torch.from_numpy(given.copy())
                torch.nn.utils.clip_grad_norm_([values], 2.0)
                optimizer.step()
                with torch.no_grad():
                    most = float(schedule.get_last_lr()[0]) * 0.01
                    values.sub_(values.clamp(-most, most))
                schedule.step()
            found = client.pull(8, worker=0)[1]
    np.testing.assert_allclose(found, values.detach().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["asp", "ssp"])
async def test_workers_that_are_held_come_to_a_stand_at_one_step(mode: str) -> None:
    async with shards(2) as cluster:
        await cluster.group(ELEMENTS, mode=mode, staleness=5 * (mode == "ssp"), workers=3)
        clients = [cluster.client() for _ in range(3)]

        def work(worker: int, first: int, last: int) -> None:
            train(clients[worker], worker, range(first, last))

        await together(lambda: clients[0].load(first_values(ELEMENTS)))
        await together(lambda: work(1, 0, 3), lambda: work(2, 0, 1))
        assert await together(clients[0].hold, clients[1].hold) == [4, 4], "after the step that worker 1 may be at"
        await together(lambda: work(0, 0, 5))  # rank 0 is not held

        def beyond() -> None:
            clients[1].push(gradient(ELEMENTS, 1, 3), worker=1, step=3)
            clients[1].pull(4, worker=1, timeout=0.2)

        with pytest.raises(errors.DeadlineExceeded):
            await together(beyond)
        await together(lambda: work(2, 1, 2))
        clocks = (await together(clients[0].all_clocks))[0]
        assert [min(each) for each in zip(*clocks, strict=True)] == [5, 4, 2]
        for client in clients:
            client.close()


async def test_in_rounds_nobody_needs_to_be_held() -> None:
    async with shards(1) as cluster:
        await cluster.group(ELEMENTS)

        def work() -> None:
            with cluster.client() as client:
                client.load(first_values(ELEMENTS))
                client.hold()

        with pytest.raises(errors.FailedPrecondition) as refused:
            await together(work)
        assert refused.value.reason == "NO_HOLD"


async def test_layer_wise_steps_without_rounds_need_one_shard() -> None:
    async with shards(2) as cluster:
        with pytest.raises(errors.Unimplemented) as refused:
            await cluster.group(ELEMENTS, optimizer="lamb", mode="asp")
        assert refused.value.reason == "NEEDS_ONE_SHARD"


async def test_rules_that_do_not_exist_are_refused() -> None:
    async with shards(2) as cluster:
        with pytest.raises(errors.Invalid):
            await cluster.group(ELEMENTS, schedule="moon")
        with pytest.raises(errors.Invalid):
            await cluster.group(ELEMENTS, l1=-1.0)
        await cluster.group(ELEMENTS, optimizer="rmsprop", l1=0.1, schedule="cosine")
