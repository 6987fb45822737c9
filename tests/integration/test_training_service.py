"""Jobs from the request to the registered version, with real neighbours and worker processes."""

import asyncio
import time
from collections.abc import AsyncIterator
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.support.training import State, World, alive, children, ended, lives, spec, state, world
from tests.support.wait import until
from tidemill import errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.training import TrainingClient
from tidemill.clients.workers import WorkerClient


@pytest.fixture
async def neighbours(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as running:
        yield running


async def lines(client: TrainingClient, job: pb.Job, **options: Any) -> list[str]:
    return [line.text async for line in client.logs(job.name, **options)]


async def test_a_job_runs_and_its_result_is_registered(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec(workers=2, register_as="models/flowers", alias="champion"), "first")
        assert job.name == "jobs/first"
        assert job.state == State.STATE_PENDING
        assert job.spec.optimizer.parameters["learning_rate"], "defaults are filled in"
        done = await ended(client, job, State.STATE_SUCCEEDED)
        log = await lines(client, done)
        await until(lambda: _empty(neighbours), what="the parameter group is deleted")
    assert [(epoch.epoch, epoch.best) for epoch in done.epochs] == [(1, True), (2, True)]
    assert done.progress.epoch == done.progress.epochs == 2
    assert done.progress.samples == 100
    assert [(worker.rank, worker.attempt, worker.pid) for worker in done.workers] == [(0, 0, 0), (1, 0, 0)]
    assert done.create_time.ToMilliseconds() <= done.start_time.ToMilliseconds() <= done.end_time.ToMilliseconds()
    assert "rank 1 attempt 0 of jobs/first" in log
    assert log[-1] == "the job has succeeded"

    version = await neighbours.registry.get_version("flowers", "champion")
    assert done.result.model_version == version.name == "models/flowers/versions/1"
    assert version.artifact == done.result.artifact
    assert version.lineage.job == "jobs/first"
    assert list(version.lineage.dataset_digests) == ["d" * 64]
    assert version.lineage.code_revision == f"tidemill {metadata.version('tidemill')}"
    assert version.lineage.traceparent == done.traceparent != ""
    assert version.metrics["accuracy"] == 0.75
    assert version.metrics["parity"] == 1e-6
    assert list(version.signature.labels) == ["a", "b", "c"]
    artifact = await neighbours.artifacts.get_artifact(version.artifact)
    assert list(artifact.references) == ["jobs/first", version.name]
    kept = await neighbours.artifacts.get_artifact(done.result.logs)
    assert kept.kind == "logs"


async def _empty(neighbours: World) -> bool:
    return not await neighbours.groups()


async def test_a_job_that_registers_nothing_succeeds_too(neighbours: World) -> None:
    async with neighbours.training() as client:
        done = await ended(client, await client.create_job(spec()), State.STATE_SUCCEEDED)
    assert done.result.artifact
    assert not done.result.model_version


async def test_patience_ends_training_early(neighbours: World) -> None:
    stopping = {"patience": 2}
    async with neighbours.training() as client:
        job = await client.create_job(spec("worse:0", epochs=50, early_stopping=stopping))
        done = await ended(client, job, State.STATE_SUCCEEDED)
    assert [epoch.best for epoch in done.epochs] == [True, False, False]
    assert done.result.best_epoch == 1


@pytest.mark.parametrize(
    ("rank", "script", "said"), [(1, "crash:1", "was killed by SIGKILL"), (0, "exit:0", "ended with status 3")]
)
async def test_a_dead_worker_is_replaced(neighbours: World, rank: int, script: str, said: str) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec(f"{script} train:0:*", workers=2))
        await until(lambda: _replaced(client, job))
        neighbours.open_gate("train")
        done = await ended(client, job, State.STATE_SUCCEEDED)
        log = await lines(client, done)
    assert done.restarts == 1
    assert [worker.attempt for worker in done.workers] == [int(worker.rank == rank) for worker in done.workers]
    assert any(said in line for line in log)
    assert neighbours.apps[0].telemetry.registry.get_sample_value("tidemill_worker_restarts_total") == 1


async def _replaced(client: TrainingClient, job: pb.Job) -> bool:
    return (await client.get_job(job.name)).restarts == 1


async def test_a_silent_worker_is_replaced(neighbours: World) -> None:
    async with neighbours.training(worker_silence_seconds=4.0) as client:
        done = await ended(client, await client.create_job(spec("hang:0")), State.STATE_SUCCEEDED)
        log = await lines(client, done)
    assert done.restarts == done.workers[0].attempt >= 1
    assert "worker 0, attempt 0: gave no sign of life for 4 s and was killed" in log


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit:0:*", "ended with status 3; it printed last:"),
        ("exit:0:*", "there is no more paper"),
        ("fail:0:*", "the disk is full"),
    ],
)
async def test_a_job_fails_when_its_workers_die_too_often(neighbours: World, script: str, reason: str) -> None:
    async with neighbours.training() as client:
        done = await ended(client, await client.create_job(spec(script, max_restarts=1)), State.STATE_FAILED)
    assert reason in done.error
    assert done.traceback == ("in line 7" if script.startswith("fail") else "")
    assert done.restarts == 1


async def test_no_worker_is_replaced_when_none_may_be(neighbours: World) -> None:
    async with neighbours.training() as client:
        done = await ended(client, await client.create_job(spec("crash:0", max_restarts=0)), State.STATE_FAILED)
    assert "SIGKILL" in done.error
    assert done.restarts == 0


async def test_a_final_failure_ends_the_job_at_once(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("final:1 train:0", workers=2))
        done = await ended(client, job, State.STATE_FAILED)
        await until(lambda: _empty(neighbours), what="the parameter group is deleted")
    assert done.error == "worker 1 at step 7: loss is nan at step 7"
    assert done.restarts == 0
    assert not alive(done)
    assert not done.HasField("result")


async def test_jobs_wait_for_their_turn_in_order(neighbours: World) -> None:
    async with neighbours.training() as client:
        first = await client.create_job(spec("train:0"))
        second = await client.create_job(spec())
        third = await client.create_job(spec())
        await state(client, first, State.STATE_RUNNING)
        waiting = await client.get_job(second.name)
        assert waiting.state == State.STATE_PENDING
        assert waiting.waiting == "waits for its turn"
        neighbours.open_gate("train")
        done = [await ended(client, job, State.STATE_SUCCEEDED) for job in (first, second, third)]
    for before, after in pairwise(done):
        assert before.end_time.ToMilliseconds() <= after.start_time.ToMilliseconds()


async def test_as_many_jobs_run_at_once_as_are_allowed(neighbours: World) -> None:
    async with neighbours.training(max_running=2) as client:
        jobs = [await client.create_job(spec("train:0")) for _ in range(3)]
        for job in jobs[:2]:
            await state(client, job, State.STATE_RUNNING)
        assert (await client.get_job(jobs[2].name)).state == State.STATE_PENDING
        neighbours.open_gate("train")
        for job in jobs:
            await ended(client, job, State.STATE_SUCCEEDED)


async def test_a_job_waits_for_parameter_shards_but_not_for_ever(neighbours: World) -> None:
    async with neighbours.training(shard_wait_seconds=1.0) as client:
        job = await client.create_job(spec(shards=2))
        waiting = "waits for 2 parameter shards, 1 is live"
        async for seen in client.watch_job(job.name):
            if seen.waiting == waiting:
                break
        done = await ended(client, job, State.STATE_FAILED)
        assert done.error == f"{waiting}, 1 s long"
        assert waiting in await lines(client, done)


@pytest.mark.parametrize("script", ["start:0", "train:0", "export:0"])
async def test_a_job_is_cancelled_wherever_it_is(neighbours: World, script: str) -> None:
    at = {"start": State.STATE_STARTING, "train": State.STATE_RUNNING, "export": State.STATE_FINISHING}[script[:-2]]
    async with neighbours.training() as client:
        job = await client.create_job(spec(script, workers=2, register_as="models/flowers"))
        before = await state(client, job, at)
        await until(lambda: _running(client, job))
        asked = await client.cancel_job(job.name)
        assert asked.state == State.STATE_CANCELLING
        done = await ended(client, job, State.STATE_CANCELLED)
        assert not alive(before)
        again = await client.cancel_job(job.name)
        assert again == done, "cancelling a job that has ended changes nothing"
        assert [model async for model in neighbours.registry.list_models()] == []
        await until(lambda: _empty(neighbours), what="the parameter group is deleted")


async def _running(client: TrainingClient, job: pb.Job) -> bool:
    return any(worker.pid for worker in (await client.get_job(job.name)).workers)


async def test_a_waiting_job_is_cancelled_at_once(neighbours: World) -> None:
    async with neighbours.training() as client:
        first = await client.create_job(spec(shards=2))
        await state(client, first, State.STATE_STARTING)
        second = await client.create_job(spec())
        assert (await client.cancel_job(second.name)).state == State.STATE_CANCELLED
        await client.cancel_job(first.name)
        done = await ended(client, first, State.STATE_CANCELLED)
        assert not done.waiting


async def test_a_worker_that_does_not_want_to_end_is_killed_with_its_children(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("stubborn:0 train:0"))
        running = await state(client, job, State.STATE_RUNNING)
        (pid,) = alive(running)
        processes = [pid, *children(pid)]
        assert len(processes) > 1
        begun = time.monotonic()
        await client.cancel_job(job.name)
        await ended(client, job, State.STATE_CANCELLED)
        assert time.monotonic() - begun < 10
        await until(lambda: not any(map(lives, processes)))


async def test_deleting_a_job_leaves_what_it_registered(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("train:0", register_as="models/flowers"))
        with pytest.raises(errors.FailedPrecondition) as early:
            await client.delete_job(job.name)
        assert early.value.reason == "JOB_ACTIVE"
        neighbours.open_gate("train")
        done = await ended(client, job, State.STATE_SUCCEEDED)
        await client.delete_job(job.name)
        with pytest.raises(errors.NotFound):
            await client.get_job(job.name)
        with pytest.raises(errors.NotFound):
            await lines(client, job)

        async def cleared() -> bool:
            left = {artifact.digest: artifact async for artifact in neighbours.artifacts.list_artifacts()}
            return left.keys() == {done.result.artifact, done.result.test_samples} and all(
                list(artifact.references) == [done.result.model_version] for artifact in left.values()
            )

        await until(cleared, what="only what the version needs is left")
        assert [job.name async for job in client.list_jobs()] == []
        assert not list((neighbours.folder / "training" / "logs").iterdir())


async def test_lists_are_newest_first_and_filtered_by_state(neighbours: World) -> None:
    async with neighbours.training() as client:
        made = [(await client.create_job(spec(shards=2))).name for _ in range(5)]
        await client.cancel_job(made[3])
        assert [job.name async for job in client.list_jobs(page_size=2)] == made[::-1]
        cancelled = client.list_jobs(state=State.STATE_CANCELLED, page_size=1)
        assert [job.name async for job in cancelled] == [made[3]]
        pending = client.list_jobs(state=State.STATE_PENDING, page_size=1)
        assert {job.name async for job in pending} <= set(made)


async def test_a_repeated_request_makes_one_job(neighbours: World) -> None:
    async with neighbours.training() as client:
        made = await asyncio.gather(*(client.create_job(spec(shards=2), request_id="once") for _ in range(5)))
        assert len({job.name for job in made}) == 1
        with pytest.raises(errors.Invalid) as other:
            await client.create_job(spec(shards=2, epochs=3), request_id="once")
        assert other.value.reason == "REQUEST_ID_REUSED"
        with pytest.raises(errors.AlreadyExists):
            await client.create_job(spec(), made[0].name.removeprefix("jobs/"))
        assert len([job async for job in client.list_jobs()]) == 1


async def test_validation_alone_creates_nothing(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec(), "checked", validate_only=True)
        assert job.spec.batch_size == 64
        assert job.spec.max_restarts == 3
        with pytest.raises(errors.NotFound):
            await client.get_job("jobs/checked")
        await client.create_job(spec(), "checked")
        with pytest.raises(errors.AlreadyExists):
            await client.create_job(spec(), "checked", validate_only=True)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"colour": "red"}, "spec"),
        ({"model": {"name": "llm"}}, "spec.model.name"),
        ({"model": {"name": "mlp", "parameters": {"hidden": [0]}}}, "spec.model.parameters.hidden[0]"),
        ({"model": {"name": "cnn"}}, "spec.model"),
        ({"optimizer": {"name": "lion"}}, "spec.optimizer.name"),
        (
            {"optimizer": {"name": "adam", "parameters": {"learning_rate": -1}}},
            "spec.optimizer.parameters.learning_rate",
        ),
        ({"optimizer": {"name": "adam", "parameters": {"lr": 1}}}, "spec.optimizer.parameters.lr"),
        ({"dataset": {"artifact": "0" * 64}}, "spec.dataset.artifact"),
    ],
)
async def test_what_is_wrong_is_named(neighbours: World, fields: dict[str, Any], field: str) -> None:
    async with neighbours.training() as client:
        with pytest.raises(errors.Invalid) as wrong:
            await client.create_job(spec(**fields))
        assert list(wrong.value.violations) == [field], wrong.value.message
        assert [job async for job in client.list_jobs()] == []


async def test_an_artifact_must_be_a_data_set_and_is_protected_while_it_is_used(neighbours: World) -> None:
    model = await neighbours.artifacts.create_artifact("model", {"a": b"b"})
    data = await neighbours.artifacts.create_artifact("dataset", {"a.csv": b"x,label\n1,a\n"})
    async with neighbours.training() as client:
        with pytest.raises(errors.Invalid) as wrong:
            await client.create_job(spec(dataset={"artifact": model.digest}))
        assert list(wrong.value.violations) == ["spec.dataset.artifact"]
        job = await client.create_job(spec(dataset={"artifact": data.digest}), "tables")
        await ended(client, job, State.STATE_SUCCEEDED)
        assert list((await neighbours.artifacts.get_artifact(data.digest)).references) == ["jobs/tables"]
        await client.delete_job(job.name)

        async def free() -> bool:
            return not (await neighbours.artifacts.get_artifact(data.digest)).references

        await until(free, what="the reference is taken back, and the artifact stays")


async def test_there_is_a_limit_to_waiting_jobs(neighbours: World) -> None:
    async with neighbours.training(max_jobs=2) as client:
        for _ in range(2):
            await client.create_job(spec(shards=2))
        with pytest.raises(errors.Exhausted):
            await client.create_job(spec())


async def test_the_catalogue_lists_what_jobs_are_made_of(neighbours: World) -> None:
    async with neighbours.training() as client:
        found = await client.catalogue()
    models = {entry.name: entry for entry in found.models}
    assert models.keys() >= {"mlp", "cnn", "text"}
    assert all(entry.description.endswith(".") for entry in (*found.models, *found.datasets, *found.strategies))
    (hidden,) = [parameter for parameter in models["mlp"].parameters if parameter.name == "hidden"]
    assert (hidden.type, hidden.default_json) == ("list[int]", "[128]")
    assert {entry.name for entry in found.datasets} == {"iris", "digits", "wine", "breast_cancer"}
    assert "adam" in {entry.name for entry in found.optimizers}
    assert "parameter_server" in {entry.name for entry in found.strategies}


async def test_a_stranger_is_not_taken_for_a_worker(neighbours: World) -> None:
    async with neighbours.training(), WorkerClient(neighbours.apps[0].address, "guess") as stranger:
        with pytest.raises(errors.Unauthenticated):
            await stranger.get_task()
        with pytest.raises(errors.Unauthenticated):
            await stranger.heartbeat("training")


async def test_the_service_announces_itself_and_counts_its_jobs(neighbours: World) -> None:
    async with neighbours.training() as client:
        await until(lambda: neighbours.registry.list_instances("training"))
        await ended(client, await client.create_job(spec()), State.STATE_SUCCEEDED)
        metric = neighbours.apps[0].telemetry.registry.get_sample_value
        assert metric("tidemill_jobs_ended_total", {"state": "succeeded"}) == 1
        await until(lambda: metric("tidemill_jobs", {"state": "running"}) == 0)
    assert not await neighbours.registry.list_instances("training")
