"""Groups that outlive their shards: killed and restarted processes, and groups that go on elsewhere."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.ports import free_ports
from tests.support.shards import GROUP, ShardProcess, Shards, first_values, shards, together, train
from tests.support.wait import until
from tidemill import errors
from tidemill.clients.parameters import GroupState, ParametersAdmin, ParametersClient
from tidemill.tensors.blocks import BLOCK, Array

ELEMENTS = 2 * BLOCK + 100


class Killable:
    """Shards in processes of their own that are started again on their port and data."""

    def __init__(self, folder: Path, count: int, *flags: str) -> None:
        self._folder = folder
        self._flags = flags
        self.ports = free_ports(count)
        self.processes = [self._start(shard) for shard in range(count)]

    def _start(self, shard: int) -> ShardProcess:
        flags = (f"--port={self.ports[shard]}", f"--data={self._folder / f'data-{shard}'}", *self._flags)
        return ShardProcess(self._folder, shard, *flags)

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{port}" for port in self.ports]

    async def ready(self) -> None:
        for process in self.processes:
            await process.started()

    def kill(self, shard: int) -> None:
        """SIGKILL, and begin again."""
        self.processes[shard].kill()
        self.processes[shard].end()
        self.processes[shard] = self._start(shard)

    def end(self) -> None:
        for process in self.processes:
            process.end()


def undisturbed(workers: int, steps: int) -> Any:
    async def run() -> Array:
        async with shards(2) as cluster:
            await cluster.group(ELEMENTS, optimizer="adam", workers=workers)
            return await everybody(cluster.addresses, workers, steps)

    return run()


async def everybody(addresses: list[str], workers: int, steps: int, shared: bool = False) -> Array:
    """All workers train from first values; the last parameters."""

    def work(worker: int) -> Array:
        with ParametersClient(addresses, GROUP, shared=shared) as client:
            if worker == 0:
                client.load(first_values(ELEMENTS))
            return train(client, worker, range(steps))

    return (await together(*[lambda worker=worker: work(worker) for worker in range(workers)]))[0]


@pytest.mark.parametrize("shared", [False, True])
async def test_workers_go_on_when_killed_shards_are_back(tmp_path: Path, shared: bool) -> None:
    cluster = Killable(tmp_path, 2, "--log-bytes=1")
    try:
        await cluster.ready()
        async with ParametersAdmin(cluster.addresses) as admin:
            await admin.create_group(
                GROUP, [("w", (ELEMENTS,))], optimizer="adam", workers=2, durability="wal", fsync=shared
            )
            work = asyncio.ensure_future(everybody(cluster.addresses, 2, 30, shared))

            async def version() -> int:
                try:
                    return min(group.version for group in await admin.get_group(GROUP))
                except errors.Unavailable:
                    return 0

            for number, reached in enumerate((3, 10, 20)):
                await until(lambda reached=reached: _reached(version, reached), what=f"step {reached}")  # type: ignore[misc]
                cluster.kill(number % 2)
            np.testing.assert_array_equal(await work, await undisturbed(2, 30))
            groups = await admin.get_group(GROUP)
            assert [(group.version, group.steps, group.samples) for group in groups] == [(30, 30, 60)] * 2
    finally:
        cluster.end()


async def _reached(version: Any, wanted: int) -> bool:
    return bool(await version() >= wanted)


async def test_a_data_directory_has_one_shard(tmp_path: Path) -> None:
    async with shards(1, data=str(tmp_path)):
        with pytest.raises(errors.FailedPrecondition) as refused:
            async with shards(1, data=str(tmp_path)):
                pass
        assert refused.value.reason == "DATA_IN_USE"


async def test_a_log_needs_a_data_directory() -> None:
    async with shards() as cluster:
        with pytest.raises(errors.FailedPrecondition) as refused:
            await cluster.group(10, durability="wal")
        assert refused.value.reason == "NO_DATA_DIRECTORY"
        with pytest.raises(errors.NotFound):
            await cluster.admin.get_group(GROUP)
        with pytest.raises(errors.Invalid):
            await cluster.group(10, durability="none", fsync=True)


async def steps(cluster: Shards, first: int, last: int, state: GroupState | None = None) -> GroupState:
    """Train from a state, or from first values; the state after it."""

    def work() -> GroupState:
        with cluster.client() as client:
            if state is None:
                client.load(first_values(ELEMENTS))
            else:
                client.restore(state)
                client.restore(state)  # the same again changes nothing
            train(client, 0, range(first, last))
            return client.snapshot()

    return (await together(work))[0]


def same(left: GroupState, right: GroupState) -> None:
    assert (left.version, left.steps, left.clocks, left.samples) == (
        right.version,
        right.steps,
        right.clocks,
        right.samples,
    )
    np.testing.assert_array_equal(left.flat, right.flat)
    assert left.state.keys() == right.state.keys()
    for name, blocks in left.state.items():
        assert blocks.keys() == right.state[name].keys()
        for index, values in blocks.items():
            np.testing.assert_array_equal(values, right.state[name][index])


@pytest.mark.parametrize("optimizer", ["adam", "momentum", "adagrad", "sgd"])
@pytest.mark.parametrize("mode", ["bsp", "asp"])
async def test_a_group_goes_on_bit_for_bit_on_another_number_of_shards(optimizer: str, mode: str) -> None:
    made: dict[str, Any] = {"optimizer": optimizer, "mode": mode, "schedule": "cosine"}
    made["schedule_parameters"] = {"steps": 12}
    async with shards(2) as cluster:
        await cluster.group(ELEMENTS, **made)
        whole = await steps(cluster, 0, 10)
        await cluster.group(ELEMENTS, name="groups/again", **made)
    async with shards(1) as cluster:
        await cluster.group(ELEMENTS, **made)
        half = await steps(cluster, 0, 5)
    async with shards(3) as cluster:
        await cluster.group(ELEMENTS, **made)
        same(await steps(cluster, 5, 10, half), whole)


async def test_what_does_not_fit_is_not_restored() -> None:
    async with shards(2) as cluster:
        await cluster.group(ELEMENTS, optimizer="adam")
        state = await steps(cluster, 0, 3)
        await cluster.group(ELEMENTS, optimizer="momentum", name="groups/other")
        await cluster.group(ELEMENTS, optimizer="adam", workers=2, name="groups/two")

        def restore(name: str) -> str:
            with cluster.client(name) as client, pytest.raises(errors.Invalid) as refused:
                client.restore(state)
            return refused.value.reason

        assert (await together(lambda: restore("groups/other")))[0] == "STATE_MISMATCH"
        await together(lambda: restore("groups/two"))
        for name in ("groups/other", "groups/two"):
            assert {group.state for group in await cluster.admin.get_group(name)} == {1}
