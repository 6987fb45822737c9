"""Jobs whose parameter shards are killed: they end with the same weights, to the bit, as if nothing had been."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_ports
from tests.support.shards import ShardProcess
from tests.support.training import State, World, ended, spec, world
from tests.support.wait import until
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.training import TrainingClient

pytestmark = pytest.mark.timeout(280)


def job(durability: str) -> dict[str, Any]:
    return spec(
        model={"name": "mlp", "parameters": {"hidden": [16], "dropout": 0.1}},
        workers=2,
        shards=2,
        epochs=10,
        batch_size=8,
        seed=7,
        optimizer={"name": "adam"},
        durability={"mode": durability},
    )


class Killable:
    """Announced shards in processes of their own, each with a data directory."""

    def __init__(self, at: World) -> None:
        self._at = at
        self._ports = free_ports(2)
        self.processes = [self._start(shard) for shard in range(2)]

    def _start(self, shard: int) -> ShardProcess:
        registry = self._at.settings["registry_address"]
        flags = (f"--registry-address={registry}", f"--port={self._ports[shard]}")
        return ShardProcess(self._at.folder, shard, *flags, f"--data={self._at.folder / f'shard-{shard}'}")

    def kill(self, shard: int, *, again: bool) -> None:
        """SIGKILL; and start another one in its place."""
        self.processes[shard].kill()
        self.processes[shard].end()
        if again:
            self.processes[shard] = self._start(shard)

    def end(self) -> None:
        for process in self.processes:
            process.end()


@asynccontextmanager
async def platform(folder: Path) -> AsyncIterator[tuple[World, Killable, TrainingClient]]:
    async with world(folder, shard_count=0) as at:
        shards = Killable(at)
        try:

            async def announced() -> bool:
                return len(await at.registry.list_instances("parameters")) == 2

            await until(announced, timeout=60)
            async with at.training(worker_command=(), shard_wait_seconds=60.0) as client:
                yield at, shards, client
        finally:
            shards.end()


async def weights(at: World, done: pb.Job) -> str:
    artifact = await at.artifacts.get_artifact(done.result.artifact)
    return next(file.sha256 for file in artifact.files if file.path == "model.safetensors")


async def test_killed_shards_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_WORKER_HEARTBEAT_SECONDS", "0.1")
    async with platform(tmp_path) as (at, shards, client):
        alone = await client.create_job(job("none"))
        expected = await weights(at, await ended(client, alone, State.STATE_SUCCEEDED))

        logged = await client.create_job(job("wal"))
        async for seen in client.watch_job(logged.name):
            if seen.progress.step > 20:
                break
        shards.kill(0, again=True)
        async for seen in client.watch_job(logged.name):
            if seen.progress.step > 70:
                break
        shards.kill(1, again=True)
        done = await ended(client, logged, State.STATE_SUCCEEDED)
        assert await weights(at, done) == expected
        assert done.restarts == 0

        copied = await client.create_job(job("replicated"))
        async for seen in client.watch_job(copied.name):
            if seen.progress.step > 30:
                break
        shards.kill(1, again=False)
        done = await ended(client, copied, State.STATE_SUCCEEDED)
        assert await weights(at, done) == expected
        assert done.restarts == 0
        lines = [line.text async for line in client.logs(copied.name)]
        assert "the first copy of parameter shard 1 is gone: the other one goes on alone" in lines
        assert "the second copy of parameter shard 0 is gone: the other one goes on alone" in lines
