"""What jobs wait for and what has happened to them, told over real processes, whatever is stopped, killed or cut."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.ports import free_ports
from tests.support.proxy import TcpProxy
from tests.support.scripted_worker import ELEMENTS
from tests.support.training import State, World, ended, spec, state, world
from tests.support.trainingprocess import process
from tests.support.wait import until
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2, parameters_pb2_grpc
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.parameters import ParametersClient
from tidemill.clients.training import TrainingClient

Condition = pb.WorkerSight.Condition


@pytest.fixture
async def neighbours(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as running:
        yield running


async def test_it_names_who_holds_up_the_others(neighbours: World) -> None:
    async with neighbours.training(worker_silence_seconds=20, worker_abandoned_seconds=20) as client:
        with pytest.raises(errors.NotFound):
            await client.explain_job("jobs/none")
        job = await client.create_job(spec("train:0", workers=2))
        waiting = await client.create_job(spec(), "waiting")
        found = await client.explain_job(waiting.name)
        assert (found.summary, list(found.before)) == (f"waits for its turn: {job.name} comes before it", [job.name])
        await state(client, job, State.STATE_RUNNING)

        async def explained() -> bool:
            nonlocal found
            found = await client.explain_job(job.name)
            return all(worker.phase == "training" for worker in found.workers)

        await until(explained)
        assert not found.stuck
        assert [shard.reachable for shard in found.shards] == [True]
        assert [member.rank for member in found.shards[0].members] == [0, 1]
        stopped = found.workers[1]
        os.kill(stopped.pid, signal.SIGSTOP)
        (group,) = await neighbours.groups()
        address = neighbours.shards.addresses[0]
        with ParametersClient([address], group) as shard:
            await asyncio.to_thread(shard.push, np.ones(ELEMENTS, np.float32), worker=0, step=0, samples=1)
        channel = grpc.aio.insecure_channel(address)
        pulling = asyncio.ensure_future(anext(aiter(pull(channel, group))))

        async def named() -> bool:
            nonlocal found
            found = await client.explain_job(job.name)
            return found.stuck and bool(found.workers[0].waits_for)

        await until(named, 20)
        assert found.workers[1].condition == Condition.CONDITION_SILENT
        assert found.workers[1].silence_seconds >= 5
        assert found.workers[0].condition == Condition.CONDITION_ALIVE
        assert found.summary.startswith("waits for worker 1, last heard of ")
        assert found.summary.endswith(" ago, at step 0; worker 0 is at step 1")
        assert list(found.culprits) == [1]
        assert found.workers[0].waits_for == "version 1, for which worker 1 must push"
        assert [(member.clock, member.waits_for != "") for member in found.shards[0].members] == [(1, True), (0, False)]
        assert list(found.shards[0].arrived) == [0]
        os.kill(stopped.pid, signal.SIGCONT)
        pulling.cancel()
        await asyncio.gather(pulling, return_exceptions=True)
        await channel.close()

        await neighbours.shards.apps[0].server.stop(0)
        await until(lambda: _named(client, job, address), 20)
        neighbours.open_gate("train")
        await client.cancel_job(job.name)
        assert (await client.wait_job(job.name)).state == State.STATE_CANCELLED
        assert (await client.explain_job(job.name)).summary == "was cancelled: it waits for nothing"


def pull(channel: grpc.aio.Channel, group: str) -> AsyncIterator[parameters_pb2.PullResponse]:
    """What worker 0 does after its push."""
    stub: Any = parameters_pb2_grpc.ParameterServiceStub(channel)
    call: AsyncIterator[parameters_pb2.PullResponse] = stub.Pull(
        parameters_pb2.PullRequest(name=group, version=1, worker=0)
    )
    return call


async def _named(client: TrainingClient, job: pb.Job, address: str) -> bool:
    summary = (await client.explain_job(job.name)).summary
    return summary.startswith(f"waits for shard {address}, which does not answer; ")


async def test_nothing_is_missed_and_nothing_told_twice(neighbours: World) -> None:
    """Over a proxy that cuts, and a service that is killed and starts again."""
    (port,) = free_ports(1)
    told: list[pb.JobEvent] = []
    lines: list[pb.LogLine] = []
    watched: list[pb.Job] = []

    async def follow(client: TrainingClient, name: str) -> None:
        async for event in client.events(name, follow=True):
            told.append(event)

    async def read(client: TrainingClient, name: str) -> None:
        async for line in client.logs(name, follow=True):
            lines.append(line)

    async def watch(client: TrainingClient, name: str) -> None:
        async for job in client.watch_job(name):
            watched.append(job)

    async with (
        process(neighbours, port=port) as service,
        TcpProxy(f"127.0.0.1:{port}") as proxy,
        TrainingClient(proxy.address, reconnect_for=30) as far,
        TrainingClient(f"127.0.0.1:{port}", reconnect_for=30) as near,
    ):
        await service.start()
        job = await near.create_job(spec("chatty:0 epoch:0", workers=2, epochs=6, max_restarts=0))
        following = asyncio.gather(follow(far, job.name), read(far, job.name), watch(far, job.name))
        for number in range(1, 7):
            before = len(told)
            if number == 3:
                await proxy.reset()
            if number == 4:
                await service.end(signal.SIGKILL)
                await service.start()
            if number == 5:
                await proxy.cut()
            neighbours.open_gate(f"epoch-{number}")
            if number == 5:
                neighbours.open_gate("epoch-6")
                await ended(near, job, State.STATE_SUCCEEDED)
                proxy.restore()
                break
            await until(lambda before=before: len(told) > before, 30)  # type: ignore[misc]
        async with asyncio.timeout(30):
            await following
        again = [event async for event in near.events(job.name)]
        whole = [line async for line in near.logs(job.name)]
        rest = [event async for event in near.events(job.name, 4)]
        last = await near.get_job(job.name)
    assert told == again
    assert [event.number for event in told] == list(range(len(told)))
    assert [event.epoch.epoch for event in told if event.HasField("epoch")] == [1, 2, 3, 4, 5, 6]
    assert [event.epoch for event in told if event.HasField("epoch")] == list(last.epochs)
    assert [event.state for event in told if not event.HasField("epoch")] == [
        State.STATE_PENDING,
        State.STATE_STARTING,
        State.STATE_RUNNING,
        State.STATE_FINISHING,
        State.STATE_SUCCEEDED,
    ]
    assert all(event.time.seconds for event in told)
    assert rest == told[4:]
    assert lines == whole
    assert [line.line for line in lines] == list(range(len(lines)))
    assert [line.text for line in lines if line.rank == 0 and line.text.startswith("line ")] == [
        f"line {number}" for number in range(2000)
    ]
    assert watched[-1] == last
    for earlier, later in pairwise(watched):
        assert earlier != later, "nothing is sent twice"
        assert list(later.changes[: len(earlier.changes)]) == list(earlier.changes)
        assert list(later.epochs[: len(earlier.epochs)]) == list(earlier.epochs)
    assert [change.state for change in last.changes] == [event.state for event in told if not event.HasField("epoch")]
