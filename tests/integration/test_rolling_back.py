"""Jobs that keep checkpoints of their parameters, and lose the shards."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.training import State, World, ended, spec, state, world
from tests.support.wait import until

KEPT = {"mode": "checkpoint", "interval_steps": 10}


@pytest.fixture
async def neighbours(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as running:
        yield running


async def test_all_go_back_to_the_last_checkpoint_and_say_so(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("lost:0", workers=2, durability=KEPT))
        done = await ended(client, job, State.STATE_SUCCEEDED)
        lines = [line.text async for line in client.logs(job.name)]
        assert [worker.attempt for worker in done.workers] == [1, 1], "all of them"
        assert done.restarts == 0, "no worker has died by itself"
        lost = "worker 0 at step 17: there is no such group: rolled back from step 17 to step 10"
        assert lost in lines
        assert any(line.startswith("goes on from ") for line in lines)
        assert len(done.epochs) == 2

        async def cleared() -> bool:
            return not await neighbours.groups()

        await until(cleared, what="the old group is deleted as well")


async def test_a_job_that_rolls_back_for_ever_fails(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("lost:0:*", durability=KEPT))
        done = await ended(client, job, State.STATE_FAILED)
    assert "rolled back 5 times to step 10" in done.error


async def test_the_parameters_are_gone_when_the_service_comes_back(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("train:0", durability=KEPT))
        await state(client, job, State.STATE_RUNNING)
    for group in await neighbours.groups():
        await neighbours.shards.admin.delete_group(group)
    neighbours.open_gate("train")
    async with neighbours.training() as client:
        await ended(client, job, State.STATE_SUCCEEDED)
        lines = [line.text async for line in client.logs(job.name)]
    assert any("the parameters are lost" in line and "rolled back from step 0 to step 0" in line for line in lines)


async def test_a_job_whose_parameters_are_lost_while_it_is_paused_has_its_checkpoint(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("epoch:0 deaf:0 lost:0", durability=KEPT))
        await state(client, job, State.STATE_RUNNING)
        await client.pause_job(job.name)
        neighbours.open_gate("epoch-1")
        resting = await state(client, job, State.STATE_PAUSED)
        assert resting.progress.step == 10
        neighbours.open_gate("epoch-2")
        await client.resume_job(job.name)
        await ended(client, job, State.STATE_SUCCEEDED)


async def test_without_checkpoints_the_job_fails(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("lost:0"))
        done = await ended(client, job, State.STATE_FAILED)
    assert "there is no such group" in done.error
