"""Jobs that are paused and go on, in every state, with what runs and lies around them."""

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.ports import free_ports
from tests.support.training import State, World, alive, ended, spec, state, world
from tests.support.trainingprocess import process
from tests.support.wait import until
from tidemill import errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.training import TrainingClient


@pytest.fixture
async def neighbours(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as running:
        yield running


async def texts(client: TrainingClient, job: pb.Job) -> list[str]:
    return [line.text async for line in client.logs(job.name)]


async def paused(client: TrainingClient, job: pb.Job) -> pb.Job:
    """The job at rest; asked twice."""
    first = await client.pause_job(job.name)
    assert first.state in (State.STATE_PAUSING, State.STATE_PAUSED)
    await client.pause_job(job.name)
    return await state(client, job, State.STATE_PAUSED)


async def checkpoints(neighbours: World) -> int:
    return len([artifact async for artifact in neighbours.artifacts.list_artifacts(kind="checkpoint")])


async def test_a_running_job_rests_and_goes_on(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("epoch:0:*", workers=2, epochs=3, register_as="models/flowers"))
        neighbours.open_gate("epoch-1")
        async for before in client.watch_job(job.name):
            if before.epochs and all(worker.pid for worker in before.workers) and before.progress.step == 20:
                break
        resting = await paused(client, job)
        assert not alive(before), "no process is left"
        assert not await neighbours.groups(), "no memory of shards is used"
        assert resting.epochs == before.epochs
        assert (resting.progress.step, resting.restarts, resting.error) == (20, 0, "")
        assert {worker.pid for worker in resting.workers} == {0}
        for name in ("epoch-2", "epoch-3"):
            neighbours.open_gate(name)
        assert (await client.resume_job(job.name)).state != State.STATE_PAUSED
        await client.resume_job(job.name)
        done = await ended(client, job, State.STATE_SUCCEEDED)
        lines = await texts(client, job)
        assert done.restarts == 0
        assert done.epochs[:1] == before.epochs[:1]
        assert [worker.attempt for worker in done.workers] == [1, 1]
        assert "the job is paused at step 20" in lines
        assert any(line.startswith("goes on from ") for line in lines)
        await until(lambda: _only(neighbours, 1), what="the state that nobody needs any more is deleted")


async def _only(neighbours: World, count: int) -> bool:
    return await checkpoints(neighbours) == count


async def test_a_job_is_paused_before_it_has_begun(neighbours: World) -> None:
    async with neighbours.training(max_running=1) as client:
        first = await client.create_job(spec("start:0"))
        waiting = await client.create_job(spec())
        assert (await client.pause_job(waiting.name)).state == State.STATE_PAUSED
        starting = await state(client, first, State.STATE_STARTING)
        await until(lambda: _started(client, starting))
        resting = await paused(client, first)
        assert (resting.progress.step, len(resting.epochs)) == (0, 0)
        assert not await neighbours.groups()
        neighbours.open_gate("start")
        for job in (waiting, first):
            await client.resume_job(job.name)
            await ended(client, job, State.STATE_SUCCEEDED)


async def _started(client: TrainingClient, job: pb.Job) -> bool:
    return any(worker.pid for worker in (await client.get_job(job.name)).workers)


async def test_a_job_that_waits_for_shards_is_paused(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec(shards=2))
        async for seen in client.watch_job(job.name):
            if "waits for 2 parameter shards" in seen.waiting:
                break
        resting = await paused(client, job)
        assert resting.waiting == ""
        with pytest.raises(errors.Invalid):
            await client.resume_job(job.name, shards=65)
        await client.resume_job(job.name, shards=1)
        done = await ended(client, job, State.STATE_SUCCEEDED)
        assert done.spec.shards == 1


async def test_a_paused_job_outlives_the_service_and_can_be_cancelled(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("train:0", register_as="models/flowers"))
        await state(client, job, State.STATE_RUNNING)
        before = await paused(client, job)
    async with neighbours.training() as client:
        other = await client.create_job(spec())
        await ended(client, other, State.STATE_SUCCEEDED)
        assert await client.get_job(job.name) == before, "others go past it"
        with pytest.raises(errors.FailedPrecondition) as refused:
            await client.delete_job(job.name)
        assert refused.value.reason == "JOB_ACTIVE"
        assert (await client.cancel_job(job.name)).state == State.STATE_CANCELLED
        with pytest.raises(errors.FailedPrecondition):
            await client.resume_job(job.name)
        await client.delete_job(job.name)
        await until(lambda: _only(neighbours, 1), what="only the other job's best epoch is kept")


async def test_a_service_that_ends_while_it_pauses_finishes_that(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("train:0 deaf:0", workers=2))
        await state(client, job, State.STATE_RUNNING)
        await client.pause_job(job.name)
        with pytest.raises(errors.FailedPrecondition) as soon:
            await client.resume_job(job.name)
        assert soon.value.reason == "JOB_PAUSING"
    async with neighbours.training() as client:
        await state(client, job, State.STATE_PAUSED)
        neighbours.open_gate("train")
        await client.resume_job(job.name)
        done = await ended(client, job, State.STATE_SUCCEEDED)
        assert done.restarts == 0


async def test_a_job_that_is_being_paused_can_be_cancelled(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("train:0 deaf:0"))
        await state(client, job, State.STATE_RUNNING)
        await client.pause_job(job.name)
        await client.cancel_job(job.name)
        done = await ended(client, job, State.STATE_CANCELLED)
        assert not alive(done)
        await until(lambda: _no_groups(neighbours))


async def _no_groups(neighbours: World) -> bool:
    return not await neighbours.groups()


async def test_a_worker_that_dies_while_it_pauses_is_replaced_by_one_that_does(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("train:0:* mortal:0"))
        await state(client, job, State.STATE_RUNNING)
        resting = await paused(client, job)
        assert resting.restarts == 1


async def test_what_is_at_its_end_is_not_paused(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("epoch:0 deaf:0 export:0", epochs=1))
        await state(client, job, State.STATE_RUNNING)
        await client.pause_job(job.name)
        neighbours.open_gate("epoch-1")
        await state(client, job, State.STATE_FINISHING)
        with pytest.raises(errors.FailedPrecondition) as late:
            await client.pause_job(job.name)
        assert late.value.reason == "JOB_NOT_PAUSABLE"
        neighbours.open_gate("export")
        await ended(client, job, State.STATE_SUCCEEDED)
        with pytest.raises(errors.FailedPrecondition):
            await client.pause_job(job.name)
        with pytest.raises(errors.NotFound):
            await client.pause_job("jobs/none")


async def test_a_log_is_followed_over_a_pause(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("train:0:*"))
        lines: list[pb.LogLine] = []
        rests = 0
        followed = client.logs(job.name, follow=True)
        async for line in followed:
            lines.append(line)
            if line.text == "training" and not rests:
                await client.pause_job(job.name)
            if line.text.startswith("the job is paused"):
                rests += 1
                await state(client, job, State.STATE_PAUSED)
                neighbours.open_gate("train")
                await client.resume_job(job.name)
        assert [line.line for line in lines] == list(range(len(lines)))
        assert (rests, lines[-1].text) == (1, "the job has succeeded")


async def test_a_service_that_is_killed_at_the_edges_of_a_pause(neighbours: World) -> None:
    edges = ("after running>pausing 1", "after pausing>pausing 2", "before pausing>paused 1", "after pausing>paused 1")
    program = ("tests.support.chaos.dying_training",)
    async with process(neighbours, program, port=free_ports(1)[0]) as service:
        for number, edge in enumerate(edges):
            died = neighbours.folder / f"died-{number}"
            await service.begin(TRAINING_DIES=edge, TRAINING_DIED=str(died))
            if not number:
                await until((neighbours.folder / "ports.json").exists)
                address = f"127.0.0.1:{json.loads((neighbours.folder / 'ports.json').read_text())['grpc']}"
                async with TrainingClient(address) as client:
                    job = await client.create_job(spec("epoch:0", workers=2))
                    neighbours.open_gate("epoch-1")
                    async for before in client.watch_job(job.name):
                        if before.epochs and all(worker.pid for worker in before.workers):
                            break
                    with pytest.raises((errors.Unavailable, errors.Cancelled)):
                        await client.pause_job(job.name)
            assert await service.ended() == -signal.SIGKILL
            assert died.exists()
        async with TrainingClient(await service.start()) as client:
            resting = await state(client, job, State.STATE_PAUSED)
            assert not alive(before)
            assert not await neighbours.groups()
            neighbours.open_gate("epoch-2")
            await client.resume_job(job.name)
            done = await ended(client, job, State.STATE_SUCCEEDED)
            lines = [line async for line in client.logs(job.name)]
    assert [worker.attempt for worker in resting.workers] == [0, 0], "none was started twice"
    assert (done.restarts, [worker.attempt for worker in done.workers]) == (0, [1, 1])
    assert done.epochs[0] == before.epochs[0]
    assert [line.line for line in lines] == list(range(len(lines)))
