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
    epochs=24,
    batch_size=8,
    seed=7,
    optimizer={"name": "momentum", "parameters": {"learning_rate": 0.01}},
)
STEPS = 24 * 15
"""All of them."""


@asynccontextmanager
async def platform(neighbours: World, count: int) -> AsyncIterator[tuple[TrainingClient, Shards]]:
    """A training service with real workers, and so many shards."""
    address = neighbours.settings["registry_address"]
    async with shards(count, registry_address=address) as running:

        async def announced() -> bool:
            return len(await neighbours.registry.list_instances("parameters")) == count

        await until(announced)
        async with neighbours.training(worker_command=(), shard_wait_seconds=60.0, max_running=2) as client:
            yield client, running


async def files(neighbours: World, job: pb.Job) -> dict[str, str]:
    """Digests of what a job has brought forth."""
    artifact = await neighbours.artifacts.get_artifact(job.result.artifact)
    return {file.path: file.sha256 for file in artifact.files}


def quality(job: pb.Job) -> list[Any]:
    return [(epoch.epoch, epoch.validation, epoch.best, epoch.samples) for epoch in job.epochs]


async def test_paused_stopped_and_resumed_elsewhere_is_as_good_as_never_paused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIDEMILL_WORKER_HEARTBEAT_SECONDS", "0.1")
    async with world(tmp_path, shard_count=0) as neighbours:
        async with platform(neighbours, 1) as (client, running):
            straight = await client.create_job(JOB, "straight")
            job = await client.create_job(JOB, "broken")
            async for seen in client.watch_job(job.name):
                if seen.progress.step:
                    break
            await client.pause_job(job.name)
            paused = await state(client, job, State.STATE_PAUSED)
            assert 0 < paused.progress.step < STEPS, "it is under way"
            assert not alive(seen), "no process is left"
            groups = [group.name async for group in running.admin.list_groups()]
            assert not [name for name in groups if name.startswith("groups/broken")], "no memory of shards is used"
            straight = await ended(client, straight, State.STATE_SUCCEEDED)
        async with platform(neighbours, 2) as (client, _):
            assert (await client.get_job(job.name)).state == State.STATE_PAUSED
            await client.resume_job(job.name, shards=2)
            done = await ended(client, job, State.STATE_SUCCEEDED)
            lines = [line.text async for line in client.logs(job.name)]
        assert (straight.spec.shards, done.spec.shards) == (1, 2)
        assert quality(done) == quality(straight)
        assert done.result.test == straight.result.test
        assert done.result.best_epoch == straight.result.best_epoch
        made, wanted = await files(neighbours, done), await files(neighbours, straight)
        assert made["model.safetensors"] == wanted["model.safetensors"], "to the last bit"
        assert any(f"the job is paused at step {paused.progress.step}" in line for line in lines)
        assert any(f"goes on from the checkpoint at step {paused.progress.step}" in line for line in lines)
