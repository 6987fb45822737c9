"""What comes out of training on the parameter server, over real shards."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.support.shards import GROUP, first_values, gradient, shards, together, train
from tidemill import errors
from tidemill.tensors.blocks import BLOCK, Array

TENSORS = [("embedding", (61, 47)), ("bias", (47,)), ("scale", ()), ("head", (3, 47, 9))]
"""Together 4184 elements: no shard's part is a multiple of anything."""
STEPS = 25
OPTIMIZERS = ["sgd", "momentum", "nesterov", "adam", "adamw", "adagrad"]


async def trained(count: int, workers: int, optimizer: str, **parameters: float) -> Array:
    """The parameters after `STEPS` rounds of `workers` workers on `count` shards."""
    async with shards(count) as cluster:
        await cluster.group(TENSORS, optimizer=optimizer, workers=workers, parameters=parameters)

        def worker(rank: int) -> Array:
            with cluster.client() as client:
                client.load(first_values(client.layout.elements))
                return train(client, rank, range(STEPS), samples=rank + 3)

        results = await together(*(lambda rank=rank: worker(rank) for rank in range(workers)))
        for other in results[1:]:
            np.testing.assert_array_equal(results[0], other)
        assert [group.version for group in await cluster.admin.get_group(GROUP)] == [STEPS] * count
        return results[0]


@pytest.mark.parametrize(
    ("optimizer", "workers", "counts"),
    [*(("adamw", workers, [2, 3]) for workers in (1, 2, 4)), *((optimizer, 2, [3]) for optimizer in OPTIMIZERS)],
)
async def test_the_number_of_shards_changes_no_bit(optimizer: str, workers: int, counts: list[int]) -> None:
    one = await trained(1, workers, optimizer, weight_decay=0.01)
    assert np.isfinite(one).all()
    for count in counts:
        np.testing.assert_array_equal(one, await trained(count, workers, optimizer, weight_decay=0.01))


TWINS: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.05, weight_decay=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, weight_decay=0.01),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
async def test_one_worker_on_two_shards_equals_torch_optim(optimizer: str) -> None:
    values = await trained(2, 1, optimizer, learning_rate=0.05, weight_decay=0.01)
    parameter = torch.nn.Parameter(torch.from_numpy(first_values(values.size)))
    twin = TWINS[optimizer]([parameter])
    for step in range(STEPS):
        parameter.grad = torch.from_numpy(gradient(values.size, 0, step))
        twin.step()
    assert torch.equal(torch.from_numpy(values), parameter.detach())


def network() -> torch.nn.Sequential:
    torch.manual_seed(5)
    return torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Tanh(), torch.nn.Linear(30, 4))


def flat(model: torch.nn.Module, *, grad: bool = False) -> Array:
    tensors = [p.grad if grad else p.detach() for p in model.parameters()]
    return np.concatenate([t.numpy().ravel() for t in tensors if t is not None])


def mean_gradient(model: torch.nn.Module, values: Array, inputs: torch.Tensor, targets: torch.Tensor) -> Array:
    torch.nn.utils.vector_to_parameters(torch.from_numpy(values.copy()), model.parameters())
    model.zero_grad()
    torch.nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
    return flat(model, grad=True)


@pytest.mark.parametrize("sizes", [(32,), (16, 16), (1, 20, 0, 11)])
async def test_many_workers_equal_one_with_the_whole_batch(sizes: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(11)
    inputs = torch.randn(32, 20, generator=generator)
    targets = torch.randint(4, (32,), generator=generator)
    parts = list(zip(torch.split(inputs, list(sizes)), torch.split(targets, list(sizes)), strict=True))
    start = flat(network())
    names = [(name, tuple(p.shape)) for name, p in network().named_parameters()]

    async with shards(2) as cluster:
        await cluster.group(names, optimizer="momentum", workers=len(sizes), parameters={"learning_rate": 0.1})

        def worker(rank: int) -> list[Array]:
            seen = []
            with cluster.client() as client:
                client.load(start)
                values = client.pull(0)[1]
                for step in range(100):
                    samples = len(parts[rank][0])
                    own = mean_gradient(network(), values, *parts[rank]) if samples else None
                    client.push(own, worker=rank, step=step, samples=samples)
                    values = client.pull(step + 1)[1]
                    seen.append(values)
            return seen

        results = await together(*(lambda rank=rank: worker(rank) for rank in range(len(sizes))))
        (group, _) = await cluster.admin.get_group(GROUP)
        assert group.samples == 100 * 32

    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    twin = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    for step in range(100):
        whole = mean_gradient(network(), parameter.detach().numpy(), inputs, targets)
        parameter.grad = torch.from_numpy(whole)
        twin.step()
        if step in (0, 99):
            alone = parameter.detach().numpy()
            difference = np.abs(results[0][step] - alone).max() / np.abs(alone).max()
            assert difference <= (1e-6 if step == 0 else 1e-5)


async def test_the_order_of_arrival_changes_no_bit() -> None:
    async def run(seed: int) -> Array:
        async with shards(2) as cluster:
            await cluster.group(3000, optimizer="adam", workers=4)
            shuffled = random.Random(seed)

            def rounds() -> Array:
                with cluster.client() as client:
                    client.load(first_values(3000))
                    for step in range(20):
                        for rank in shuffled.sample(range(4), 4):
                            scale = np.float32(10.0**rank)  # so that another order of the sum would be seen
                            own = gradient(3000, rank, step) * scale
                            client.push(own, worker=rank, step=step, samples=rank + 1)
                    return client.pull(20)[1]

            return (await together(rounds))[0]

    first = await run(0)
    for seed in (1, 2):
        np.testing.assert_array_equal(first, await run(seed))


async def test_blocks_of_full_size_travel_and_stay_in_place() -> None:
    elements = 2 * BLOCK + 12345
    async with shards(2) as cluster:
        parts = await cluster.group(elements, parameters={"learning_rate": 1.0})
        assert sum(b.elements for part in parts for b in part.blocks) == elements
        assert max(b.elements for part in parts for b in part.blocks) <= BLOCK
        count = np.arange(elements, dtype=np.float32)

        def work() -> Array:
            with cluster.client() as client:
                client.load(count)
                client.push(count / 2, worker=0, step=0)
                return client.pull(1)[1]

        np.testing.assert_array_equal((await together(work))[0], count - count / 2)
        assert cluster.metric("tidemill_pushed_bytes_total") == 4 * elements
        assert cluster.metric("tidemill_pulled_bytes_total") >= 4 * elements
        assert cluster.metric("tidemill_rounds_total") == 2
        assert cluster.metric("tidemill_pushes_total", outcome="applied") == 2


async def test_a_group_smaller_than_its_shards() -> None:
    async with shards(3) as cluster:
        parts = await cluster.group(5, workers=2, parameters={"learning_rate": 1.0})
        assert [len(part.blocks) for part in parts] == [1, 0, 0]

        def worker(rank: int) -> Array:
            with cluster.client() as client:
                client.load(np.zeros(5, np.float32))
                return train(client, rank, range(3), make=lambda size, _, __: np.full(size, -1, np.float32))

        for values in await together(lambda: worker(0), lambda: worker(1)):
            np.testing.assert_array_equal(values, [3, 3, 3, 3, 3])


async def test_a_round_without_samples_advances_and_changes_nothing() -> None:
    async with shards(2) as cluster:
        await cluster.group(2100, optimizer="momentum", workers=2)

        def rounds() -> tuple[list[Array], int]:
            with cluster.client() as client:
                client.load(first_values(2100))
                seen = []
                for step in range(4):
                    for rank in range(2):
                        samples = 0 if step in (1, 2) else 3
                        client.push(gradient(2100, rank, step), worker=rank, step=step, samples=samples)
                    seen.append(client.pull(step + 1)[1])
                return seen, client.pull(3)[0]

        ((one, two, three, four), before) = (await together(rounds))[0]
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)
        assert not np.array_equal(three, four)
        assert before == 3
        (group, _) = await cluster.admin.get_group(GROUP)
        assert (group.version, group.samples) == (4, 12)


async def test_the_state_of_the_optimizer_is_that_of_torch() -> None:
    async with shards(2) as cluster:
        await cluster.group(3000, optimizer="adam")

        def work() -> tuple[int, dict[str, Array]]:
            with cluster.client() as client:
                client.load(first_values(3000))
                train(client, 0, range(7))
                version, state = client.state()
                whole = {name: np.concatenate([blocks[i] for i in sorted(blocks)]) for name, blocks in state.items()}
                return version, whole

        version, state = (await together(work))[0]
        parameter = torch.nn.Parameter(torch.from_numpy(first_values(3000)))
        twin = torch.optim.Adam([parameter])
        for step in range(7):
            parameter.grad = torch.from_numpy(gradient(3000, 0, step))
            twin.step()
        assert version == 7
        np.testing.assert_array_equal(state["exp_avg"], twin.state[parameter]["exp_avg"].numpy())
        np.testing.assert_array_equal(state["exp_avg_sq"], twin.state[parameter]["exp_avg_sq"].numpy())
        assert set(state["step"]) == {7.0}


async def test_no_state_is_told_as_such() -> None:
    async with shards(2) as cluster:
        await cluster.group(3000)
        with cluster.client() as client:
            with pytest.raises(errors.FailedPrecondition):
                client.state()
            client.load(first_values(3000))
            assert client.state() == (0, {})


async def test_vectors_of_the_wrong_length_are_refused_by_the_client() -> None:
    async with shards() as cluster:
        await cluster.group(100)
        with cluster.client() as client:
            with pytest.raises(errors.Invalid):
                client.load(np.zeros(99, np.float32))
            client.load(np.zeros(100, np.float32))
            with pytest.raises(errors.Invalid):
                client.push(np.zeros((100, 1), np.float32), worker=0, step=0)
            with pytest.raises(errors.Invalid):
                client.pull(0, np.zeros(100, np.float64))
            assert client.layout.shapes == [(100,)]
            assert client.versions() == [0]
