"""Jobs that get other workers and shards while they work: nobody is restarted, and every sample counts once."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_pause import files, quality
from tests.support.shards import shards
from tests.support.training import State, World, alive, ended, spec, world
from tests.support.wait import until
from tidemill import errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.training import TrainingClient

pytestmark = pytest.mark.timeout(300)
EPOCHS = 24
SAMPLES = 120
"""Of iris, for training."""


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_WORKER_HEARTBEAT_SECONDS", "0.1")


@asynccontextmanager
async def platform(folder: Path, count: int) -> AsyncIterator[tuple[TrainingClient, World]]:
    """A training service with real workers, and so many shards."""
    async with world(folder, shard_count=0) as neighbours:
        address = neighbours.settings["registry_address"]
        async with shards(count, registry_address=address, kept=folder / "shards"):

            async def announced() -> bool:
                return len(await neighbours.registry.list_instances("parameters")) == count

            await until(announced)
            async with neighbours.training(worker_command=(), shard_wait_seconds=60.0, max_running=2) as client:
                yield client, neighbours


def job(**changes: Any) -> Any:
    wanted = {
        "model": {"name": "mlp", "parameters": {"hidden": [64], "dropout": 0.0}},
        "workers": 1,
        "shards": 1,
        "epochs": EPOCHS,
        "batch_size": 8,
        "seed": 7,
        "optimizer": {"name": "momentum", "parameters": {"learning_rate": 0.01}},
    }
    return spec(**{**wanted, **changes})


async def at_work(client: TrainingClient, name: str, epochs: int) -> pb.Job:
    """The job once it has finished so many epochs more, with all its workers at work."""
    first = -1
    async for seen in client.watch_job(name):
        first = len(seen.epochs) if first < 0 else first
        working = [worker for worker in seen.workers if worker.phase == "training"]
        if len(seen.epochs) >= first + epochs and len(working) == seen.spec.workers:
            return seen
    raise AssertionError(f"it has ended: {State.Name(seen.state)} {seen.error}")


async def resized(client: TrainingClient, name: str, **wanted: int) -> pb.Job:
    """The job once it has what was asked for."""
    asked = await client.resize_job(name, **wanted)
    assert asked.HasField("resize")
    async for seen in client.watch_job(name):
        if not seen.HasField("resize"):
            assert all(getattr(seen.spec, field) == number for field, number in wanted.items()), "it could be done"
            return seen
    raise AssertionError("it has ended")


def pids(job: pb.Job) -> dict[int, tuple[int, int]]:
    return {worker.rank: (worker.attempt, worker.pid) for worker in job.workers}


async def test_workers_join_and_leave_and_shards_come_and_go(tmp_path: Path) -> None:
    async with platform(tmp_path, 3) as (client, _):
        fixed = await client.create_job(job(epochs=20), "fixed")
        created = await client.create_job(job(epochs=20), "elastic")
        name = created.name
        alone = await at_work(client, name, 1)
        await resized(client, name, workers=3, shards=2)
        three = await at_work(client, name, 1)
        assert pids(three)[0] == pids(alone)[0], "rank 0 was not restarted"
        await resized(client, name, workers=2, shards=3)
        two = await at_work(client, name, 1)
        assert {rank: pids(three)[rank] for rank in (0, 1)} == pids(two), "who stays was not restarted"
        left = next(worker for worker in three.workers if worker.rank == 2)
        await until(lambda: not alive(pb.Job(workers=[left])), what="who has left has ended")
        await resized(client, name, workers=3)
        assert (await at_work(client, name, 1)).workers[2].attempt == 1, "a process of its own"
        done = await ended(client, created, State.STATE_SUCCEEDED)
        straight = await ended(client, fixed, State.STATE_SUCCEEDED)
    assert done.restarts == 0
    assert {epoch.samples for epoch in done.epochs} == {SAMPLES}, "every sample once an epoch"
    losses = [one.epochs[-1].validation.loss for one in (done, straight)]
    assert math.isclose(*losses, rel_tol=0.01), "a batch is a batch, whoever computes it"


WAYS: dict[str, dict[str, Any]] = {
    "ssp": {"consistency": {"mode": "ssp", "staleness": 2}},
    "wal and norms": {
        "durability": {"mode": "wal"},
        "clip_norm": 0.5,
        "optimizer": {"name": "lamb", "parameters": {"learning_rate": 0.01}},
    },
    "replicated": {"durability": {"mode": "replicated"}, "shards": 2},
}


@pytest.mark.parametrize("way", WAYS)
async def test_in_every_way(tmp_path: Path, way: str) -> None:
    together = way != "ssp"
    async with platform(tmp_path, 3) as (client, _):
        # Without rounds nobody waits for those who join: it would be over before they are there.
        created = await client.create_job(job(epochs=20 if together else 10_000, **WAYS[way]))
        name = created.name
        await at_work(client, name, 1)
        await resized(client, name, workers=2, shards=3)
        await at_work(client, name, 1)
        await resized(client, name, workers=1, shards=2)
        await at_work(client, name, 1)
        if not together:
            await client.cancel_job(name)
        done = await ended(client, created, State.STATE_SUCCEEDED if together else State.STATE_CANCELLED)
    assert done.restarts == 0
    used = [epoch.samples for epoch in done.epochs]
    if together:
        assert {*used} == {SAMPLES}, "every sample once an epoch"
    else:
        assert 0 <= SAMPLES * len(used) - sum(used) < SAMPLES, "no sample twice, and nobody is far behind"
    assert done.epochs[-1].train_loss < done.epochs[0].train_loss


async def test_workers_that_talk_to_each_other_meet_anew(tmp_path: Path) -> None:
    async with platform(tmp_path, 0) as (client, _):
        created = await client.create_job(job(strategy="all_reduce", workers=2, shards=0, epochs=60))
        name = created.name
        both = await at_work(client, name, 1)
        await resized(client, name, workers=3)
        three = await at_work(client, name, 1)
        assert {rank: pids(three)[rank] for rank in (0, 1)} == pids(both)
        await resized(client, name, workers=1)
        assert pids(await at_work(client, name, 1)) == {0: pids(three)[0]}
        done = await ended(client, created, State.STATE_SUCCEEDED)
    assert done.restarts == 0
    assert {epoch.samples for epoch in done.epochs} == {SAMPLES}
    assert done.epochs[-1].train_loss < done.epochs[0].train_loss / 2


async def test_other_shards_change_nothing_to_the_last_bit(tmp_path: Path) -> None:
    wanted = job(model={"name": "mlp", "parameters": {"hidden": [64], "dropout": 0.1}}, workers=2, epochs=24)
    async with platform(tmp_path, 3) as (client, neighbours):
        straight = await client.create_job(wanted, "straight")
        created = await client.create_job(wanted, "moved")
        await at_work(client, created.name, 1)
        for count in (3, 1, 2):
            await resized(client, created.name, shards=count)
        done = await ended(client, created, State.STATE_SUCCEEDED)
        straight = await ended(client, straight, State.STATE_SUCCEEDED)
        made, right = await files(neighbours, done), await files(neighbours, straight)
    assert (done.spec.shards, done.restarts) == (2, 0)
    assert quality(done) == quality(straight)
    assert made["model.safetensors"] == right["model.safetensors"]


async def test_a_service_that_ends_meanwhile_finishes_it_later(tmp_path: Path) -> None:
    """What it waits for, a third shard, comes only when it is back."""
    async with world(tmp_path, shard_count=0) as neighbours:
        address = neighbours.settings["registry_address"]
        settings: dict[str, Any] = {"worker_command": (), "shard_wait_seconds": 120.0}
        async with shards(1, registry_address=address):
            async with neighbours.training(**settings) as client:
                created = await client.create_job(job(epochs=10_000))
                await at_work(client, created.name, 1)
                await client.resize_job(created.name, workers=2, shards=2)
                async for seen in client.watch_job(created.name):
                    if seen.waiting:
                        assert "waits for 2 parameter shards, 1 is live" in seen.waiting
                        break
                with pytest.raises(errors.FailedPrecondition) as refused:
                    await client.resize_job(created.name, workers=3)
                assert refused.value.reason == "JOB_RESIZING"
                again = await client.resize_job(created.name, workers=2, shards=2)
                assert (again.resize.workers, again.resize.shards) == (2, 2)
            async with shards(1, registry_address=address, shard=1), neighbours.training(**settings) as client:
                async for seen in client.watch_job(created.name):
                    if not seen.HasField("resize"):
                        break
                working = await at_work(client, created.name, 1)
                assert (working.spec.workers, working.spec.shards) == (2, 2)
                await client.cancel_job(created.name)
                await ended(client, created, State.STATE_CANCELLED)


async def test_a_job_at_rest_is_changed_at_once(tmp_path: Path) -> None:
    async with platform(tmp_path, 2) as (client, _):
        created = await client.create_job(job(epochs=20))
        await at_work(client, created.name, 1)
        await client.pause_job(created.name)
        async for seen in client.watch_job(created.name):
            if seen.state == State.STATE_PAUSED:
                break
        changed = await client.resize_job(created.name, workers=2, shards=2)
        assert not changed.HasField("resize")
        assert (changed.spec.workers, changed.spec.shards) == (2, 2)
        await client.resume_job(created.name)
        done = await ended(client, created, State.STATE_SUCCEEDED)
        assert {epoch.samples for epoch in done.epochs} == {SAMPLES}
        with pytest.raises(errors.FailedPrecondition) as late:
            await client.resize_job(created.name, workers=1)
        assert late.value.reason == "JOB_NOT_RESIZABLE"


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({"workers": 65}, "workers"),
        ({"workers": -1}, "workers"),
        ({"shards": 65}, "shards"),
        ({"shards": -1}, "shards"),
    ],
)
async def test_numbers_that_cannot_be_are_refused(tmp_path: Path, wanted: dict[str, int], field: str) -> None:
    async with world(tmp_path) as neighbours, neighbours.training() as client:
        created = await client.create_job(spec("train:0"))
        with pytest.raises(errors.Invalid) as refused:
            await client.resize_job(created.name, **wanted)
        assert field in refused.value.violations


async def test_what_needs_two_shards_keeps_them(tmp_path: Path) -> None:
    async with world(tmp_path) as neighbours, neighbours.training() as client:
        created = await client.create_job(spec("train:0", shards=2, durability={"mode": "replicated"}))
        with pytest.raises(errors.Invalid):
            await client.resize_job(created.name, shards=1)
        with pytest.raises(errors.NotFound):
            await client.resize_job("jobs/none", workers=2)
