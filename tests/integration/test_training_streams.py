"""Following jobs: their states, their logs, and their traces."""

import asyncio
import json
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.ports import free_ports
from tests.support.proxy import TcpProxy
from tests.support.training import State, World, ended, spec, state, world
from tests.support.wait import until
from tidemill import errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.training import TrainingClient
from tidemill.telemetry.setup import setup

ORDER = [
    State.STATE_PENDING,
    State.STATE_STARTING,
    State.STATE_RUNNING,
    State.STATE_FINISHING,
    State.STATE_SUCCEEDED,
]


@pytest.fixture
async def neighbours(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as running:
        yield running


async def read(client: TrainingClient, job: pb.Job, into: list[pb.LogLine]) -> None:
    async for line in client.logs(job.name, follow=True):
        into.append(line)


async def test_a_watch_sees_the_job_advance_and_ends_with_it(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("train:0 epoch:0", workers=2))
        seen: list[pb.Job] = []
        async for each in client.watch_job(job.name):
            seen.append(each)
            if each.state == State.STATE_RUNNING:
                neighbours.open_gate("train")
            if each.progress.step > 10 * len(each.epochs):
                neighbours.open_gate(f"epoch-{len(each.epochs) + 1}")
        found = await client.get_job(job.name)
    assert seen[-1] == found, "the last message is the final state"
    states = [ORDER.index(each.state) for each in seen]
    assert states == sorted(states)
    assert any(each.progress.step and not each.epochs for each in seen), "progress shows between epochs"
    for before, after in pairwise(seen):
        assert before != after, "nothing is sent twice"
        assert list(after.epochs[: len(before.epochs)]) == list(before.epochs)
        assert before.progress.step <= after.progress.step


async def test_a_watch_of_nothing_and_of_what_is_deleted(neighbours: World) -> None:
    async with neighbours.training() as client:
        with pytest.raises(errors.NotFound):
            await client.wait_job("jobs/nothing")
        with pytest.raises(errors.Invalid):
            await client.wait_job("nothing")
        job = await client.create_job(spec(shards=2))
        await client.cancel_job(job.name)
        assert (await client.wait_job(job.name)).state == State.STATE_CANCELLED, "one that has ended is sent once"


async def test_streams_survive_broken_connections_without_a_gap(neighbours: World) -> None:
    async with (
        neighbours.training() as client,
        TcpProxy(neighbours.apps[0].address) as proxy,
        TrainingClient(proxy.address, reconnect_for=20) as far,
    ):
        job = await client.create_job(spec("chatty:0 train:0 epoch:0", workers=2))
        lines: list[pb.LogLine] = []
        reading = asyncio.create_task(read(far, job, lines))
        waiting = asyncio.create_task(far.wait_job(job.name))
        await until(lambda: len(lines) > 100)
        await proxy.reset()
        neighbours.open_gate("train")
        await until(lambda: len(lines) > 2000)
        await proxy.cut()
        neighbours.open_gate("epoch-1")
        neighbours.open_gate("epoch-2")
        await state(client, job, State.STATE_FINISHING, State.STATE_SUCCEEDED)
        proxy.restore()
        assert (await waiting).state == State.STATE_SUCCEEDED
        await reading
        again = [line async for line in client.logs(job.name)]
    assert lines == again
    assert [line.line for line in lines] == list(range(len(lines)))
    assert [line.text for line in lines if line.rank == 0][1:2001] == [f"line {number}" for number in range(2000)]
    assert lines[-1].text == "the job has succeeded"
    assert all(a.time.ToMilliseconds() <= b.time.ToMilliseconds() for a, b in pairwise(lines))


async def test_streams_survive_a_restart_of_the_service(neighbours: World) -> None:
    (port,) = free_ports(1)
    lines: list[pb.LogLine] = []
    async with TrainingClient(f"127.0.0.1:{port}", reconnect_for=20) as far:
        async with neighbours.training(port=port) as client:
            job = await client.create_job(spec("epoch:0"))
            reading = asyncio.create_task(read(far, job, lines))
            waiting = asyncio.create_task(far.wait_job(job.name))
            await until(lambda: any(line.text == "training" for line in lines))
        for number in (1, 2):
            neighbours.open_gate(f"epoch-{number}")
        async with neighbours.training(port=port):
            assert (await waiting).state == State.STATE_SUCCEEDED
            await reading
    assert [line.line for line in lines] == list(range(len(lines)))
    assert [line.text for line in lines if line.text.startswith("rank 0")] == [
        f"rank 0 attempt {attempt} of {job.name}" for attempt in (0, 1)
    ]


async def test_logs_are_read_from_any_line(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("chatty:0"))
        await ended(client, job, State.STATE_SUCCEEDED)
        everything = [line async for line in client.logs(job.name)]
        assert len(everything) > 2000
        for first in (1, 255, 256, 257, 1999):
            assert [line async for line in client.logs(job.name, first)] == everything[first:]
        assert [line async for line in client.logs(job.name, len(everything), follow=True)] == []
        with pytest.raises(errors.Invalid):
            [line async for line in client.logs(job.name, -1)]


async def test_the_log_of_a_waiting_job_can_be_followed(neighbours: World) -> None:
    async with neighbours.training() as client:
        first = await client.create_job(spec("train:0"))
        second = await client.create_job(spec())
        assert [line async for line in client.logs(second.name)] == []

        lines: list[pb.LogLine] = []
        reading = asyncio.create_task(read(client, second, lines))
        await state(client, first, State.STATE_RUNNING)
        neighbours.open_gate("train")
        await reading
        assert lines[-1].text == "the job has succeeded"


async def test_a_log_that_is_not_here_any_more_comes_from_its_artifact(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("chatty:0"))
        await ended(client, job, State.STATE_SUCCEEDED)
        here = [line async for line in client.logs(job.name)]
    for path in (neighbours.folder / "training" / "logs").iterdir():
        path.unlink()
    async with neighbours.training() as client:
        kept = [line async for line in client.logs(job.name)]
        assert kept == here[: len(kept)]
        assert len(kept) > 2000
        assert [line async for line in client.logs(job.name, 1500)] == kept[1500:]


async def test_a_log_is_bounded_and_says_so(neighbours: World) -> None:
    async with neighbours.training(log_lines=500) as client:
        job = await client.create_job(spec("chatty:0"))
        await ended(client, job, State.STATE_SUCCEEDED)
        texts = [line.text async for line in client.logs(job.name)]
    assert texts[500] == "the log is full: further lines of workers are not kept"
    assert len(texts) < 520
    assert texts[-1] == "the job has succeeded"


async def test_one_trace_runs_from_the_request_to_the_registration(neighbours: World, tmp_path: Path) -> None:
    folder = tmp_path / "traces"
    telemetry = setup("test", traces=f"file:{folder}")
    async with neighbours.training(traces=f"file:{folder}") as client:
        with telemetry.tracer.start_as_current_span("root") as root:
            job = await client.create_job(spec(register_as="models/flowers"))
        done = await ended(client, job, State.STATE_SUCCEEDED)
    telemetry.shutdown()
    trace = f"{root.get_span_context().trace_id:032x}"
    assert done.traceparent.split("-")[1] == trace
    spans = [json.loads(line) for path in folder.iterdir() for line in path.read_text().splitlines()]
    named = {span["name"]: span for span in spans if span["trace_id"] == trace}
    assert named.keys() >= {
        "root",
        "tidemill.api.training.v1.TrainingService/CreateJob",
        "job",
        "job.schedule",
        "job.register",
        "tidemill.api.registry.v1.RegistryService/CreateModelVersion",
    }
    assert named["job.register"]["attributes"]["tidemill.job"] == job.name
