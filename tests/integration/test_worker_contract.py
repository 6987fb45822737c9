"""What the training service answers to its worker processes, and to those that are not its workers any more."""

import math
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from tests.support.training import State, World, ended, spec, state, world
from tests.support.wait import until
from tidemill import errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.training import TrainingClient
from tidemill.clients.workers import WorkerClient

RESULT = pb.Result(artifact="a" * 64, best_epoch=1, signature="{}")


@pytest.fixture
async def neighbours(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as running:
        yield running


def epoch(number: int, loss: float = 1.0) -> pb.Epoch:
    return pb.Epoch(epoch=number, validation=pb.Metrics(loss=loss))


async def seen(client: TrainingClient, job: pb.Job, condition: Callable[[pb.Job], bool]) -> pb.Job:
    """The job once it meets a condition."""
    async with aclosing(client.watch_job(job.name)) as jobs:
        async for each in jobs:
            if condition(each):
                return each
    raise AssertionError("it ended without")


def training(job: pb.Job) -> bool:
    return bool(job.workers) and all(worker.phase == "training" for worker in job.workers)


def impostor(neighbours: World, pid: int) -> WorkerClient:
    """A client that has the token of a worker process."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    (token,) = [each.partition(b"=")[2] for each in variables if each.startswith(b"TIDEMILL_WORKER_TOKEN=")]
    return WorkerClient(neighbours.apps[0].address, token.decode(), retry_for=0)


async def test_a_worker_that_was_replaced_is_told_to_end(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("train:0:*", workers=2))
        running = await seen(client, job, training)
        pid = running.workers[0].pid
        async with impostor(neighbours, pid) as old:
            assert (await old.get_task()).rank == 0
            os.kill(pid, signal.SIGKILL)
            await seen(client, job, lambda job: job.workers[0].attempt == 1 and job.workers[0].pid != 0)
            assert (await old.heartbeat("training", step=999)).stop
            for call in (
                old.get_task(),
                old.report_epoch(epoch(1)),
                old.report_result(RESULT),
                old.report_failure("x", final=True),
            ):
                with pytest.raises(errors.Stale) as replaced:
                    await call
                assert replaced.value.reason == "WORKER_REPLACED"
            neighbours.open_gate("train")
            done = await ended(client, job, State.STATE_SUCCEEDED)
            assert done.progress.step == 20, "what the old one says does not count"
            with pytest.raises(errors.Unauthenticated):
                await old.heartbeat("training")


async def test_reports_are_taken_once_in_order_and_from_rank_0_alone(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("train:0 export:0", workers=2, epochs=2))
        running = await seen(client, job, training)
        async with (
            impostor(neighbours, running.workers[0].pid) as first,
            impostor(neighbours, running.workers[1].pid) as second,
        ):
            with pytest.raises(errors.FailedPrecondition) as other:
                await second.report_epoch(epoch(1))
            assert other.value.reason == "NOT_RANK_0"
            with pytest.raises(errors.FailedPrecondition) as early:
                await first.report_result(RESULT)
            assert early.value.reason == "TRAINING_NOT_OVER"
            with pytest.raises(errors.OutOfRange):
                await first.report_epoch(epoch(2))
            for wrong in (epoch(0), epoch(1, math.nan), pb.Epoch(epoch=1, checkpoint="x")):
                with pytest.raises(errors.Invalid):
                    await first.report_epoch(wrong)
            for _ in range(3):
                answer = await first.report_epoch(epoch(1, 0.5))
                assert (answer.stop, answer.best_epoch) == (False, 1)
            await first.report_epoch(epoch(1, 0.1))
            assert [each.validation.loss for each in (await client.get_job(job.name)).epochs] == [0.5]
            answer = await first.report_epoch(epoch(2, 0.9))
            assert (answer.stop, answer.best_epoch) == (True, 1)
            assert (await second.heartbeat("training")).stop, "the training is over, and rank 1 does not export"
            assert not (await first.heartbeat("training")).stop
            for result in (
                pb.Result(artifact="x", best_epoch=1),
                pb.Result(artifact="a" * 64, best_epoch=3),
                pb.Result(artifact="a" * 64, best_epoch=1, parity=math.inf),
                pb.Result(artifact="a" * 64, best_epoch=1, signature="{"),
            ):
                with pytest.raises(errors.Invalid):
                    await first.report_result(result)
            assert (await first.get_task()).epochs[0].best
        neighbours.open_gate("train")
        neighbours.open_gate("export")
        done = await ended(client, job, State.STATE_SUCCEEDED)
        assert [each.best for each in done.epochs] == [True, False]
        assert done.restarts == 0


async def test_workers_of_a_job_that_is_to_stop_are_told_so(neighbours: World) -> None:
    async with neighbours.training(worker_grace_seconds=3.0) as client:
        job = await client.create_job(spec("stubborn:0 train:0", workers=1))
        running = await state(client, job, State.STATE_RUNNING)
        async with impostor(neighbours, running.workers[0].pid) as worker:
            await client.cancel_job(job.name)

            async def told() -> bool:
                try:
                    return (await worker.heartbeat("training")).stop
                except errors.Unauthenticated:
                    return True

            await until(told)
            with pytest.raises((errors.Stale, errors.Unauthenticated)):
                await worker.report_epoch(epoch(1))
        done = await ended(client, job, State.STATE_CANCELLED)
        assert not done.epochs
