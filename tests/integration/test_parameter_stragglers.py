"""Late workers over real shards: rounds that close without them, wait for them, or fail."""

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.integration.test_parameter_durability import Killable
from tests.support.shards import GROUP, Shards, block, first_values, gradient, header, shards, together, train, wire
from tests.support.wait import until
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.clients.parameters import LATEST, ParametersAdmin, ParametersClient
from tidemill.telemetry import attributes
from tidemill.tensors.blocks import BLOCK, Array

WORKERS = 4
ELEMENTS = 2 * BLOCK + 100
STEPS = 25
DROP: dict[str, Any] = {"stragglers": "drop", "most_dropped": 1}


async def loaded(cluster: Shards, elements: int = ELEMENTS, **options: Any) -> None:
    await cluster.group(elements, **{"workers": WORKERS, "parameters": {"learning_rate": 1.0}, **options})
    with cluster.client() as client:
        client.load(np.zeros(elements, np.float32))


def at_once(step: int) -> float:
    """No pause in any step."""
    return 0.0


def constant(values: Array) -> float:
    """The one value of all elements: those of different rounds, or of different workers, would differ."""
    assert values.min() == values.max()
    return float(values[0])


class Crew:
    """Workers that push constant vectors, and note which of their pushes counted."""

    def __init__(self, addresses: list[str], steps: int = STEPS, **options: Any) -> None:
        self.addresses = addresses
        self.steps = steps
        self.options = {"shared": False, **options}
        self.counted: dict[int, list[int]] = {rank: [] for rank in range(WORKERS)}
        self.dropped: dict[int, list[int]] = {rank: [] for rank in range(WORKERS)}

    def work(self, rank: int, pause: Callable[[int], float] = at_once, attempt: int = 0) -> Callable[[], float]:
        def run() -> float:
            with ParametersClient(self.addresses, GROUP, **self.options) as client:
                step, values = client.pull(LATEST, worker=rank, attempt=attempt)
                while step < self.steps:
                    constant(values)
                    own = np.full(client.layout.elements, -(2.0**rank), np.float32)
                    threading.Event().wait(pause(step))
                    outcome = client.push(own, worker=rank, step=step, attempt=attempt)
                    (self.dropped if outcome.dropped else self.counted)[rank].append(step)
                    wanted = LATEST if outcome.dropped else step + 1
                    try:
                        step, values = client.pull(wanted, worker=rank, attempt=attempt)
                    except errors.OutOfRange:
                        assert rank, "nobody goes on without rank 0"
                        step, values = client.pull(LATEST, worker=rank, attempt=attempt)
                return constant(values)

        return run

    def expected(self) -> float:
        """What comes of the pushes that counted."""
        total = 0.0
        for step in range(self.steps):
            made = [rank for rank in range(WORKERS) if step in self.counted[rank]]
            total += sum(2.0**rank for rank in made) / len(made)
        return total


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("most", [1, 2])
async def test_workers_of_any_speed_get_on_and_see_whole_versions(count: int, most: int) -> None:
    async with shards(count) as cluster:
        await loaded(cluster, stragglers="drop", most_dropped=most)
        crew = Crew(cluster.addresses, shared=True)
        chance = random.Random(7)

        def slow(step: int) -> float:
            return 0.05 if chance.random() < 0.5 else 0.0

        found = await together(*(crew.work(rank, slow if rank else at_once) for rank in range(WORKERS)))
        assert found[0] == pytest.approx(crew.expected(), rel=1e-5)
        assert crew.counted[0] == list(range(STEPS))
        groups = await cluster.admin.get_group(GROUP)
        used = sum(map(len, crew.counted.values()))
        assert [(group.version, group.samples) for group in groups] == [(STEPS, used)] * count
        assert all(STEPS * (WORKERS - most) <= group.samples < STEPS * WORKERS for group in groups), "some were dropped"
        assert {rank: member.dropped for rank, member in enumerate(groups[0].members)} == {
            rank: len(late) for rank, late in crew.dropped.items()
        }
        late = sum(map(len, crew.dropped.values()))
        assert cluster.metric(f"{attributes.METRIC_PUSHES}_total", outcome="dropped") >= late


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_without_a_worker_that_never_comes_the_result_is_that_of_the_others_to_the_bit(count: int) -> None:
    async def run(workers: int, **options: Any) -> Array:
        async with shards(count) as cluster:
            await cluster.group(ELEMENTS, workers=workers, optimizer="adam", **options)
            with cluster.client() as client:
                client.load(first_values(ELEMENTS))

            def work(rank: int) -> Callable[[], Array]:
                def train_alone() -> Array:
                    with cluster.client() as client:
                        return train(client, rank, range(8), samples=rank + 1).copy()

                return train_alone

            return (await together(*(work(rank) for rank in range(3))))[0]

    np.testing.assert_array_equal(await run(4, **DROP), await run(3))


async def test_a_late_push_is_dropped_and_its_worker_goes_on_with_the_others() -> None:
    async with shards(2) as cluster:
        await loaded(cluster, **DROP)
        crew = Crew(cluster.addresses, steps=5)
        await together(*(crew.work(rank) for rank in range(3)))
        with cluster.client() as client:
            before = client.pull(5)[1].copy()
            outcome = client.push(np.ones(ELEMENTS, np.float32), worker=3, step=2)
            assert (outcome.dropped, outcome.duplicate, outcome.version) == (True, False, 5)
            version, values = client.pull(LATEST, worker=3)
            assert version == 5
            np.testing.assert_array_equal(values, before)
            assert client.push(np.ones(ELEMENTS, np.float32), worker=3, step=5).dropped is False
            assert client.samples() == 15
        assert (await cluster.admin.get_group(GROUP))[0].members[3].dropped == 1


async def test_the_missing_are_waited_for_as_long_as_was_asked() -> None:
    async with shards(2) as cluster:
        await loaded(cluster, **DROP, after_seconds=0.3)
        crew = Crew(cluster.addresses, steps=3)
        started = time.monotonic()
        await together(*(crew.work(rank) for rank in range(3)))
        assert time.monotonic() - started >= 3 * 0.3
        groups = await cluster.admin.get_group(GROUP)
        assert [(group.version, group.samples) for group in groups] == [(3, 9)] * 2


@contextmanager
def died(cluster: Shards, rank: int) -> Iterator[None]:
    """A worker that dies in its first step, when the first shard has its push and the others have not."""
    held = cluster.addresses[0]
    with wire(held) as first:
        blocks = first.get().blocks
        own = np.full(ELEMENTS, -(2.0**rank), np.float32)
        parts = [block(one.index, own[one.offset : one.offset + one.elements]) for one in blocks]
        first.push(header(rank, 0), *parts)
    yield


class TestDeaths:
    async def test_with_wait_the_others_wait_for_its_replacement(self) -> None:
        async with shards(2) as cluster:
            await loaded(cluster)
            crew = Crew(cluster.addresses, steps=2)
            others = asyncio.gather(*(asyncio.to_thread(crew.work(rank)) for rank in range(3)))

            async def stuck() -> bool:
                groups = await cluster.admin.get_group(GROUP)
                return all(
                    "worker 3 must push" in group.members[rank].waits_for for group in groups for rank in range(3)
                )

            await until(stuck, what="they wait")
            await together(crew.work(3, attempt=1))
            await others
            assert crew.counted == {rank: [0, 1] for rank in range(WORKERS)}

    async def test_with_drop_the_others_go_on_and_its_replacement_joins_them(self) -> None:
        async with shards(3) as cluster:
            await loaded(cluster, **DROP)
            crew = Crew(cluster.addresses, steps=10)
            await together(*(crew.work(rank) for rank in range(3)))
            crew.steps = 12
            found = await together(*(crew.work(rank, attempt=int(rank == 3)) for rank in range(WORKERS)))
            assert len(set(found)) == 1
            assert min(crew.counted[3] + crew.dropped[3], default=10) >= 10
            assert crew.expected() == pytest.approx(found[0], rel=1e-5)

    async def test_with_drop_a_worker_that_only_the_first_shard_has_heard_counts_when_it_is_replaced(self) -> None:
        async with shards(2) as cluster:
            await loaded(cluster, **DROP)
            crew = Crew(cluster.addresses, steps=1)
            with died(cluster, 3):
                others = asyncio.gather(*(asyncio.to_thread(crew.work(rank)) for rank in (0, 1)))

                async def decided() -> bool:
                    groups = await cluster.admin.get_group(GROUP)
                    return groups[0].version == 1 and "worker 3 must push" in groups[1].members[0].waits_for

                await until(decided, what="the second shard has heard what the first one has decided")
                with cluster.client() as client:
                    late = client.push(np.full(ELEMENTS, -4.0, np.float32), worker=2, step=0)
                    assert late.dropped, "the first shard did not wait for it"
                    assert not others.done()
                    assert min(client.versions()) == 0, "where a replacement joins"
                    client.pull(0, worker=3, attempt=1)
                    again = client.push(np.full(ELEMENTS, -8.0, np.float32), worker=3, step=0, attempt=1)
                    assert not again.dropped
                assert await others == [pytest.approx((1 + 2 + 8) / 3)] * 2

    @pytest.mark.parametrize("present", [[0, 1, 2], [2]])
    async def test_with_fail_all_learn_in_time_who_was_missing(self, present: list[int]) -> None:
        async with shards(2) as cluster:
            await loaded(cluster, stragglers="fail", after_seconds=0.5)
            crew = Crew(cluster.addresses)
            started = time.monotonic()
            failures = await asyncio.gather(
                *(asyncio.to_thread(crew.work(rank)) for rank in present), return_exceptions=True
            )
            assert 0.5 <= time.monotonic() - started < 30
            missing = ", ".join(str(rank) for rank in range(WORKERS) if rank not in present)
            for failure in failures:
                assert isinstance(failure, errors.DeadlineExceeded)
                assert failure.reason == "STRAGGLERS"
                assert failure.metadata["ranks"] == missing
            with cluster.client() as client, pytest.raises(errors.DeadlineExceeded, match="did not push"):
                client.push(np.ones(ELEMENTS, np.float32), worker=3, step=0)
            await cluster.admin.delete_group(GROUP)


class TestWithALog:
    @pytest.mark.parametrize("victims", [[0, 1], [1, 1], [0, 0]])
    async def test_killed_shards_go_on_with_what_was_decided(self, tmp_path: Path, victims: list[int]) -> None:
        cluster = Killable(tmp_path, 2, "--log-bytes=1")
        try:
            await cluster.ready()
            async with ParametersAdmin(cluster.addresses) as admin:
                await admin.create_group(
                    GROUP,
                    [("w", (ELEMENTS,))],
                    optimizer="sgd",
                    parameters={"learning_rate": 1.0},
                    workers=WORKERS,
                    durability="wal",
                    **DROP,
                )
                with ParametersClient(cluster.addresses, GROUP, shared=False) as client:
                    client.load(np.zeros(ELEMENTS, np.float32))
                crew = Crew(cluster.addresses, steps=STEPS)
                chance = random.Random(3)

                def slow(step: int) -> float:
                    return 0.02 if chance.random() < 0.3 else 0.0

                work = asyncio.gather(*(asyncio.to_thread(crew.work(rank, slow)) for rank in range(WORKERS)))

                async def version() -> int:
                    try:
                        return min(group.version for group in await admin.get_group(GROUP))
                    except errors.Unavailable:
                        return 0

                for victim, reached in zip(victims, (4, 12), strict=True):

                    async def there(reached: int = reached) -> bool:
                        return await version() >= reached

                    await until(there, what=f"step {reached}")
                    cluster.kill(victim)
                found = await work
                groups = await admin.get_group(GROUP)
                assert len({found[0], *found}) <= 2
                assert [group.version for group in groups] == [STEPS] * 2
                assert groups[0].samples == groups[1].samples
                assert STEPS * (WORKERS - 1) <= groups[0].samples <= STEPS * WORKERS
        finally:
            cluster.end()

    async def test_a_shard_that_is_killed_when_it_has_heard_the_verdict_hears_it_again(self, tmp_path: Path) -> None:
        cluster = Killable(tmp_path, 2)
        try:
            await cluster.ready()
            async with ParametersAdmin(cluster.addresses) as admin:
                await admin.create_group(
                    GROUP,
                    [("w", (ELEMENTS,))],
                    optimizer="sgd",
                    parameters={"learning_rate": 1.0},
                    workers=WORKERS,
                    durability="wal",
                    **DROP,
                )
                with ParametersClient(cluster.addresses, GROUP, shared=False) as client:
                    client.load(np.zeros(ELEMENTS, np.float32))
                here = Shards(cluster.addresses, admin, [])
                crew = Crew(cluster.addresses, steps=1)
                # Acknowledged when the round has closed: until then it is under way.
                gone = asyncio.ensure_future(asyncio.to_thread(self._push_first, here))
                others = asyncio.gather(*(asyncio.to_thread(crew.work(rank)) for rank in (0, 1)))

                async def decided() -> bool:
                    try:
                        groups = await admin.get_group(GROUP)
                    except errors.Unavailable:
                        return False
                    told = "worker 3 must push" in str(groups[1].members) or list(groups[1].arrived) == [0, 1]
                    return groups[0].version == 1 and told

                await until(decided, what="the first shard has decided")
                await gone
                cluster.kill(1)
                with ParametersClient(cluster.addresses, GROUP, shared=False) as client:
                    assert not client.push(np.full(ELEMENTS, -8.0, np.float32), worker=3, step=0, attempt=1).dropped
                assert await others == [pytest.approx((1 + 2 + 8) / 3)] * 2
        finally:
            cluster.end()

    def _push_first(self, cluster: Shards) -> None:
        with died(cluster, 3):
            pass


async def test_the_first_message_of_a_pull_says_whose_gradients_it_is_made_of() -> None:
    async with shards(2) as cluster:
        await loaded(cluster, **DROP)
        crew = Crew(cluster.addresses, steps=1)
        await together(*(crew.work(rank) for rank in range(3)))
        for address in cluster.addresses:
            with grpc.insecure_channel(address) as channel:
                pull = channel.unary_stream(
                    "/tidemill.api.parameters.v1.ParameterService/Pull",
                    pb.PullRequest.SerializeToString,
                    pb.PullResponse.FromString,
                )
                first, *rest = pull(pb.PullRequest(name=GROUP, version=1))
                assert list(first.ranks) == [0, 1, 2]
                assert not any(message.ranks for message in rest)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"stragglers": "hope"}, "stragglers"),
        ({**DROP, "mode": "asp"}, "rounds"),
        ({**DROP, "arrival_order": True}, "arrival"),
        ({**DROP, "durability": "replicated"}, "copies"),
        ({**DROP, "most_dropped": 4}, "workers"),
        ({**DROP, "clip_norm": 1.0}, "sums over all shards"),
        ({"stragglers": "fail"}, "more than 0"),
    ],
)
async def test_groups_that_cannot_drop_or_fail_are_refused(options: dict[str, Any], reason: str) -> None:
    async with shards(2) as cluster:
        with pytest.raises(errors.Invalid, match=reason):
            await cluster.group(10, workers=WORKERS, **options)


async def test_steps_are_the_same_with_gradients_of_any_kind() -> None:
    """What is pushed sparsely encoded, or shared, is dropped and counted all the same."""
    for options in ({"codec": "bf16"}, {"shared": True}):
        async with shards(2) as cluster:
            await loaded(cluster, **DROP)

            def work(rank: int, options: dict[str, Any] = options) -> Callable[[], Array]:
                def run() -> Array:
                    with cluster.client(**options) as client:
                        client.pull(0, worker=rank)
                        for step in range(4):
                            assert not client.push(gradient(ELEMENTS, rank, step), worker=rank, step=step).dropped
                            _, values = client.pull(step + 1, worker=rank, view=True)
                        return values.copy()

                return run

            first, *rest = await together(*(work(rank) for rank in range(3)))
            assert all(np.array_equal(first, other) for other in rest)
            with cluster.client(**options) as client:
                client.pull(LATEST, worker=3)
                assert client.push(gradient(ELEMENTS, 3, 0), worker=3, step=0).dropped
                assert not client.push(gradient(ELEMENTS, 3, 4), worker=3, step=4).dropped
