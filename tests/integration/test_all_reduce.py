"""Jobs whose workers are processes that sum up their gradients among themselves, with real neighbours."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.support.training import State, World, alive, ended, lives, world
from tests.support.wait import until
from tidemill import errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.training import TrainingClient

pytestmark = pytest.mark.timeout(240)
QUICK = {"model": {"name": "mlp", "parameters": {"hidden": [32]}}, "dataset": {"builtin": "digits"}, "seed": 5}


def spec(**fields: Any) -> dict[str, Any]:
    return {**QUICK, "strategy": "all_reduce", "epochs": 3, **fields}


@pytest.fixture
async def alone(tmp_path: Path) -> AsyncIterator[World]:
    """Neighbours without any parameter server."""
    async with world(tmp_path, shard_count=0) as running:
        running.settings["worker_command"] = ()
        yield running


async def weights(neighbours: World, job: pb.Job, folder: Path) -> dict[str, Any]:
    """What a job has trained."""
    await asyncio.to_thread(folder.mkdir)
    files = await neighbours.artifacts.download_artifact(job.result.artifact, folder)
    found: dict[str, Any] = load_file(files["model.safetensors"])
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


async def log(client: TrainingClient, job: pb.Job) -> list[str]:
    return [line.text async for line in client.logs(job.name)]


async def reached(client: TrainingClient, job: pb.Job, step: int) -> pb.Job:
    """The job once all of its workers are at a step."""
    async for seen in client.watch_job(job.name):
        if seen.workers and all(worker.pid and worker.step >= step for worker in seen.workers):
            return seen
    raise AssertionError("it has ended")


async def test_digits_are_learnt_without_any_parameter_server(alone: World, tmp_path: Path) -> None:
    async with alone.training() as client:
        wanted = spec(
            model={"name": "cnn"}, workers=2, shards=2, epochs=8, register_as="models/digits", alias="champion"
        )
        done = await ended(client, await client.create_job(wanted), State.STATE_SUCCEEDED)
        said = await log(client, done)
        await until(lambda: _only_the_best_is_left(alone), what="other checkpoints are deleted")
    assert done.result.test.accuracy >= 0.95
    assert done.result.model_version == "models/digits/versions/1"
    assert done.spec.shards == 0, "there are none to be had"
    assert done.spec.optimizer.parameters["beta2"] == 0.999, "defaults are filled in"
    assert "parameters are held by the workers themselves" in said
    assert "rank 1 has met the others, meeting 1" in said


async def _only_the_best_is_left(neighbours: World) -> bool:
    kinds = [artifact.kind async for artifact in neighbours.artifacts.list_artifacts()]
    return sorted(kinds) == ["checkpoint", "dataset", "logs", "model"]


async def test_both_strategies_give_the_same_bits(tmp_path: Path) -> None:
    async with world(tmp_path) as neighbours:
        neighbours.settings["worker_command"] = ()
        async with neighbours.training(max_running=2) as client:
            for workers in (1, 2):
                jobs = [
                    await client.create_job(spec(workers=workers, epochs=2, strategy=strategy))
                    for strategy in ("all_reduce", "parameter_server")
                ]
                done = [await ended(client, job, State.STATE_SUCCEEDED) for job in jobs]
                trained = [
                    await weights(neighbours, job, tmp_path / f"{workers}-{index}") for index, job in enumerate(done)
                ]
                assert same(*trained)
                metrics = [[(epoch.train_loss, epoch.validation) for epoch in job.epochs] for job in done]
                assert metrics[0] == metrics[1]


def _is_gone(pid: int) -> bool:
    return not lives(pid)


async def test_killed_workers_change_nothing(alone: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_WORKER_HEARTBEAT_SECONDS", "0.1")
    wanted = spec(workers=2, epochs=10, batch_size=16, checkpoint_steps=25)
    async with alone.training(max_running=2, worker_silence_seconds=3.0) as client:
        fault_free = await client.create_job(wanted)
        job = await client.create_job(wanted)
        for rank, number in ((1, signal.SIGKILL), (0, signal.SIGKILL), (1, signal.SIGSTOP)):
            seen = await client.get_job(job.name)
            seen = await reached(client, job, seen.progress.step + 20)
            os.kill(seen.workers[rank].pid, number)
            await until(partial(_is_gone, seen.workers[rank].pid), timeout=30)
        done = await ended(client, job, State.STATE_SUCCEEDED)
        want = await ended(client, fault_free, State.STATE_SUCCEEDED)
    assert done.restarts == 3
    assert same(await weights(alone, done, tmp_path / "done"), await weights(alone, want, tmp_path / "want"))
    for one, other in zip(done.epochs, want.epochs, strict=True):
        assert (one.train_loss, one.validation) == (other.train_loss, other.validation)


async def test_cancelling_ends_all_processes(alone: World) -> None:
    async with alone.training() as client:
        job = await client.create_job(spec(workers=3, epochs=10_000))
        running = await reached(client, job, 5)
        pids = alive(running)
        assert len(pids) == 3
        async with asyncio.timeout(10):
            await client.cancel_job(job.name)
            await ended(client, job, State.STATE_CANCELLED)
        assert not any(lives(pid) for pid in pids)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"optimizer": {"name": "lamb"}}, "spec.optimizer.name: must be one of adagrad, adam, adamw"),
        ({"optimizer": {"name": "adam", "parameters": {"beta3": 1}}}, "spec.optimizer.parameters.beta3: is unknown"),
        ({"optimizer": {"name": "sgd", "parameters": {"learning_rate": -1}}}, "learning_rate"),
        ({"checkpoint_steps": -1}, "spec.checkpoint_steps: must be in"),
        ({"strategy": "parameter_server", "checkpoint_steps": 5}, "parameter shards hold its state"),
    ],
)
async def test_what_cannot_run_is_refused_when_the_job_is_created(
    alone: World, fields: dict[str, Any], said: str
) -> None:
    async with alone.training() as client:
        with pytest.raises(errors.Invalid) as caught:
            await client.create_job(spec(**fields), validate_only=True)
    assert said in caught.value.message
