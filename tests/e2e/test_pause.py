"""A job that is paused, while everything is stopped and started again, ends as if nothing had happened."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.shards import Shards, shards
from tests.support.training import State, World, alive, ended, spec, state, world
from tests.support.wait import until
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.training import TrainingClient

pytestmark = pytest.mark.timeout(240)
JOB = spec(
    model={"name": "mlp", "parameters": {"hidden": [64], "dropout": 0.1}},
    workers=2,
    shards=1,
    epochs=100,
    batch_size=8,
    seed=7,
    optimizer={"name": "momentum", "parameters": {"learning_rate": 0.01}},
)


@asynccontextmanager
async def platform(neighbours: World, count: int) -> AsyncIterator[tuple[TrainingClient, Shards]]:
    """A training service with real workers, and so many shards."""
    address = neighbours.settings["registry_address"]
    async with shards(count, registry_address=address) as running:

        async def announced() -> bool:
            return len(await neighbours.registry.list_instances("parameters")) == count

        await until(announced)
        async with neighbours.training(worker_command=(), shard_wait_seconds=60.0) as client:
            yield client, running


async def files(neighbours: World, job: pb.Job) -> dict[str, str]:
    """Digests of what a job has brought forth."""
    artifact = await neighbours.artifacts.get_artifact(job.result.artifact)
    return {file.path: file.sha256 for file in artifact.files}


def quality(job: pb.Job) -> list[Any]:
    return [(epoch.epoch, epoch.validation, epoch.best, epoch.samples) for epoch in job.epochs]


@pytest.mark.parametrize("strategy", ["parameter_server", "all_reduce"])
async def test_paused_stopped_and_resumed_elsewhere_is_as_good_as_never_paused(tmp_path: Path, strategy: str) -> None:
    given = {**JOB, "strategy": strategy} | ({"shards": 0} if strategy == "all_reduce" else {})
    async with world(tmp_path, shard_count=0) as neighbours:
        async with platform(neighbours, 1) as (client, running):
            straight = await ended(client, await client.create_job(given, "straight"), State.STATE_SUCCEEDED)
            job = await client.create_job(given, "broken")
            async for seen in client.watch_job(job.name):
                if seen.progress.step > 20:
                    break
            await client.pause_job(job.name)
            paused = await state(client, job, State.STATE_PAUSED)
            assert 20 < paused.progress.step < 1500, "it is under way"
            assert not alive(seen), "no process is left"
            assert not [group async for group in running.admin.list_groups()], "no memory of shards is used"
        async with platform(neighbours, 2) as (client, _):
            assert (await client.get_job(job.name)).state == State.STATE_PAUSED
            resumed = await client.resume_job(job.name, shards=2 if given["shards"] else 0)
            assert resumed.state != State.STATE_PAUSED
            done = await ended(client, job, State.STATE_SUCCEEDED)
            lines = [line.text async for line in client.logs(job.name)]
        assert done.spec.shards == 2 * given["shards"]
        assert quality(done) == quality(straight)
        assert done.result.test == straight.result.test
        assert done.result.best_epoch == straight.result.best_epoch
        made, wanted = await files(neighbours, done), await files(neighbours, straight)
        assert made["model.safetensors"] == wanted["model.safetensors"], "to the last bit"
        assert any(f"the job is paused at step {paused.progress.step}" in line for line in lines)
        assert any(f"goes on from the checkpoint at step {paused.progress.step}" in line for line in lines)
