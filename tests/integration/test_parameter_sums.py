"""Steps that need sums over all shards: clipping by the norm of the whole gradient, and layer-wise optimizers."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.integration.test_parameter_durability import Killable
from tests.support.shards import GROUP, Shards, first_values, gradient, shards, together, train, wire
from tests.support.wait import until
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.clients.parameters import ParametersAdmin
from tidemill.clients.replicas import LocalArbiter
from tidemill.rpc.status import translated
from tidemill.tensors.blocks import BLOCK, Array

TENSORS = [("a", (BLOCK + 5,)), ("b", (3, 7)), ("c", (BLOCK // 2,)), ("empty", (0,)), ("d", (BLOCK // 4 - 9,))]
ELEMENTS = sum(int(np.prod(shape)) for _, shape in TENSORS)
RULES: dict[str, dict[str, Any]] = {
    "clipping": {"optimizer": "momentum", "parameters": {"learning_rate": 0.1}, "clip_norm": 2.0},
    "layer-wise": {"optimizer": "lamb", "parameters": {"learning_rate": 0.1}},
    "both": {"optimizer": "lamb", "parameters": {"learning_rate": 0.1}, "clip_norm": 1.0, "l1": 0.001},
}
STEPS = 6


async def trained(cluster: Shards, workers: int, *, steps: int = STEPS, shared: bool = False, **client: Any) -> Array:
    """All workers train from first values; the last parameters."""

    def work(worker: int) -> Array:
        with cluster.client(shared=shared, **client) as one:
            if worker == 0:
                one.load(first_values(ELEMENTS))
            return train(one, worker, range(steps), samples=1 + worker)

    return (await together(*[lambda worker=worker: work(worker) for worker in range(workers)]))[0]


async def left_early(cluster: Shards, workers: int) -> Array:
    """All workers train, and their gradients leave while they are being made; the last parameters."""

    def work(worker: int) -> Array:
        with cluster.client() as one:
            if worker == 0:
                one.load(first_values(ELEMENTS))
            values = one.pull(0)[1]
            flat = np.empty(ELEMENTS, np.float32)
            for step in range(STEPS):
                push = one.begin_push(flat, worker=worker, step=step, samples=1 + worker)
                flat[:] = gradient(ELEMENTS, worker, step)
                push.ready(0, ELEMENTS)
                one.exchange(push, step + 1, values, worker=worker)
            return values

    return (await together(*[lambda worker=worker: work(worker) for worker in range(workers)]))[0]


@pytest.mark.parametrize("rule", RULES)
async def test_the_bits_do_not_depend_on_the_number_of_shards(rule: str) -> None:
    found = []
    for count in (1, 2, 3):
        async with shards(count) as cluster:
            await cluster.group(TENSORS, workers=2, **RULES[rule])
            found.append(await (left_early(cluster, 2) if count == 3 else trained(cluster, 2, shared=count == 2)))
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)


async def test_clipping_over_shards_is_that_of_torch() -> None:
    import torch

    async with shards(3) as cluster:
        await cluster.group(TENSORS, **RULES["clipping"])
        found = await trained(cluster, 1)
    values = torch.nn.Parameter(torch.from_numpy(first_values(ELEMENTS).copy()))
    optimizer = torch.optim.SGD([values], lr=0.1, momentum=0.9)
    for step in range(STEPS):
        values.grad = torch.from_numpy(gradient(ELEMENTS, 0, step))
        torch.nn.utils.clip_grad_norm_([values], 2.0)
        optimizer.step()
    np.testing.assert_allclose(found, values.detach().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["asp", "ssp"])
async def test_without_rounds_a_worker_says_how_long_its_whole_gradient_is(mode: str) -> None:
    found = []
    for count in (1, 3):
        async with shards(count) as cluster:
            await cluster.group(TENSORS, mode=mode, staleness=2 * (mode == "ssp"), **RULES["clipping"])
            found.append(await trained(cluster, 1))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6, atol=1e-7)


async def test_tables_are_clipped_with_all_other_tensors() -> None:
    tensors = [("table", (3000, 64)), ("w", (1000,))]
    found = []
    for count in (1, 2):
        async with shards(count) as cluster:
            await cluster.group(tensors, parameters={"learning_rate": 1.0}, clip_norm=0.5, sparse=("table",))

            def work(cluster: Shards = cluster) -> Array:
                with cluster.client() as client:
                    client.load(first_values(3000 * 64 + 1000))
                    for step in range(3):
                        rows = np.arange(step, 3000, 50)
                        given = gradient(len(rows) * 64, 0, step).reshape(-1, 64)
                        client.push_rows(gradient(1000, 1, step), {"table": (rows, given)}, worker=0, step=step)
                    return client.pull(3)[1]

            found += await together(work)
    np.testing.assert_array_equal(found[0], found[1])
    assert abs(np.linalg.norm(found[0] - first_values(3000 * 64 + 1000)) - 0.5 * 3**0.5) < 0.2


async def test_a_round_without_samples_needs_no_sums() -> None:
    async with shards(2) as cluster:
        await cluster.group(TENSORS, **RULES["both"])

        def work() -> Array:
            with cluster.client() as client:
                client.load(first_values(ELEMENTS))
                client.push(None, worker=0, step=0, samples=0)
                client.pull(1)
                return train(client, 0, range(1, 3))

        np.testing.assert_raises(
            AssertionError, np.testing.assert_array_equal, (await together(work))[0], first_values(ELEMENTS)
        )


async def test_a_worker_that_takes_the_place_of_rank_0_carries_on() -> None:
    """Rank 0 dies when its gradients are there and the sums are not carried."""
    async with shards(2) as cluster:
        await cluster.group(TENSORS, workers=2, **RULES["both"])

        def begin() -> None:
            with cluster.client() as client:
                client.load(first_values(ELEMENTS))
                # As somebody who pushes and then says nothing.
                client._mediation.begin = lambda step: None  # type: ignore[method-assign]
                client.push(gradient(ELEMENTS, 0, 0), worker=0, step=0)

        def other() -> Array:
            with cluster.client() as client:
                return train(client, 1, range(STEPS), samples=2)

        def again() -> Array:
            with cluster.client() as client:
                for step in range(STEPS):
                    client.push(gradient(ELEMENTS, 0, step), worker=0, step=step, attempt=1)
                    values = client.pull(step + 1)[1]
                return values

        await together(begin)
        found = await together(other, again)
        np.testing.assert_array_equal(found[0], found[1])
    async with shards(1) as cluster:
        await cluster.group(TENSORS, workers=2, **RULES["both"])
        np.testing.assert_array_equal(found[0], await trained(cluster, 2))


async def test_deleting_a_group_ends_a_step_that_waits_for_sums() -> None:
    async with shards(2) as cluster:
        await cluster.group(TENSORS, **RULES["clipping"])

        def work() -> None:
            with cluster.client() as client:
                client.load(first_values(ELEMENTS))
                client._mediation.begin = lambda step: None  # type: ignore[method-assign]
                client.push(gradient(ELEMENTS, 0, 0), worker=0, step=0)

        running = asyncio.ensure_future(together(work))
        await until(lambda: all(app_waits(cluster)), what="both shards wait for sums")
        await cluster.admin.delete_group(GROUP)
        with pytest.raises(errors.NotFound):
            await running


def app_waits(cluster: Shards) -> list[bool]:
    found = []
    for address in cluster.addresses:
        with wire(address) as line:
            found.append(list(line.get().arrived) == [0])
    return found


async def test_sums_that_are_not_the_shards_own_are_refused() -> None:
    async with shards(2) as cluster:
        await cluster.group(TENSORS, workers=2, **RULES["clipping"])
        with wire(cluster.addresses[0]) as line:

            def write(number: int = 0, **sums: Any) -> None:
                request = pb.WriteSumsRequest(name=GROUP, step=0, number=number, sums=[pb.PartialSums(**sums)])
                with translated():
                    line.stub.WriteSums(request, timeout=30)

            with pytest.raises(errors.Invalid, match="turn"):
                write(1, width=1)
            refusals: list[dict[str, Any]] = [
                {"tensors": [0], "blocks": [0], "values": [float("nan")], "width": 1},
                {"tensors": [0], "blocks": [0], "values": [-1.0], "width": 1},
                {"tensors": [9], "blocks": [0], "values": [1.0], "width": 1},
                {"tensors": [0, 0], "blocks": [0, 0], "values": [1.0, 1.0], "width": 1},
                {"tensors": [0], "blocks": [0, 1], "values": [1.0, 1.0], "width": 1},
                {"tensors": [0], "blocks": [0], "values": [1.0, 2.0], "width": 2},
            ]
            for wrong in refusals:
                with pytest.raises(errors.Invalid) as refused:
                    write(**wrong)
                assert refused.value.reason == "PARTIALS_MISMATCH"


async def test_groups_that_need_no_sums_say_so() -> None:
    async with shards(2) as cluster:
        await cluster.group(TENSORS)
        with wire(cluster.addresses[0]) as line, pytest.raises(errors.FailedPrecondition) as refused, translated():
            line.stub.ReadSums(pb.ReadSumsRequest(name=GROUP), timeout=30)
        assert refused.value.reason == "NO_SUMS"


async def test_killed_shards_come_back_to_the_same_bits(tmp_path: Path) -> None:
    cluster = Killable(tmp_path, 2, "--log-bytes=1")
    try:
        await cluster.ready()
        async with ParametersAdmin(cluster.addresses) as admin:
            served = Shards(cluster.addresses, admin, [])
            await served.group(TENSORS, workers=2, durability="wal", **RULES["both"])
            work = asyncio.ensure_future(trained(served, 2, steps=12))

            async def reached(wanted: int) -> bool:
                try:
                    return min(group.version for group in await admin.get_group(GROUP)) >= wanted
                except errors.Unavailable:
                    return False

            for number, wanted in enumerate((3, 8)):
                await until(lambda wanted=wanted: reached(wanted), what=f"step {wanted}")  # type: ignore[misc]
                cluster.kill(number % 2)
            found = await work
    finally:
        cluster.end()
    async with shards(1) as alone:
        await alone.group(TENSORS, workers=2, **RULES["both"])
        np.testing.assert_array_equal(found, await trained(alone, 2, steps=12))


async def test_both_copies_of_a_shard_make_the_same_steps(tmp_path: Path) -> None:
    cluster = Killable(tmp_path, 2)
    try:
        await cluster.ready()
        async with ParametersAdmin(cluster.addresses) as admin:
            served = Shards(cluster.addresses, admin, [])
            await served.group(TENSORS, workers=2, durability="replicated", **RULES["both"])
            arbiter = LocalArbiter()
            work = asyncio.ensure_future(trained(served, 2, steps=12, arbiter=arbiter))

            async def reached() -> bool:
                return min(group.version for group in await admin.get_group(GROUP)) >= 5

            await until(reached, what="step 5")
            cluster.kill(1)
            found = await work
    finally:
        cluster.end()
    async with shards(1) as alone:
        await alone.group(TENSORS, workers=2, **RULES["both"])
        np.testing.assert_array_equal(found, await trained(alone, 2, steps=12))


async def test_a_client_that_is_closed_waits_for_no_sums() -> None:
    async with shards(2) as cluster:
        await cluster.group(TENSORS, workers=2, **RULES["clipping"])
        client = cluster.client()

        def work() -> None:
            client.load(first_values(ELEMENTS))
            client.push(gradient(ELEMENTS, 0, 0), worker=0, step=0)
            with pytest.raises(errors.Cancelled):
                client.pull(1)

        running = asyncio.ensure_future(together(work))
        await until(lambda: all(app_waits(cluster)), what="rank 0 has pushed")
        await together(client.close)
        await running
