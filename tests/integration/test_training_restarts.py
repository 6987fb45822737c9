"""Training services that end, die, come back, take over, and lose what they depend on, while jobs are at work."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.etcd import EtcdServer
from tests.support.kv import etcd_kv, fresh_prefix
from tests.support.ports import free_ports
from tests.support.proxy import TcpProxy
from tests.support.training import State, World, alive, ended, lives, spec, state, world
from tests.support.trainingprocess import process
from tests.support.wait import until
from tidemill import errors, records
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.training import TrainingClient
from tidemill.kv.base import Kv, Put
from tidemill.kv.open import open_kv
from tidemill.rpc.caller import Caller
from tidemill.training.jobs import Job
from tidemill.training.jobs import State as JobState
from tidemill.training.store import JOBS, JobStore


@pytest.fixture
async def neighbours(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as running:
        yield running


@pytest.fixture(params=["sqlite", "etcd"])
async def kv(request: pytest.FixtureRequest, tmp_path: Path, etcd_server: EtcdServer) -> AsyncIterator[Kv]:
    if request.param == "etcd":
        async with etcd_kv(etcd_server.address, prefix=fresh_prefix()) as opened:
            yield opened
        return
    opened_file = await open_kv(f"sqlite:///{tmp_path}/jobs.db")
    yield opened_file
    await opened_file.close()


async def edit(kv: Kv, job: pb.Job, **fields: object) -> None:
    """Change the stored job behind the back of all services."""

    async def opener() -> Kv:
        return kv

    store = JobStore(opener)
    await store.open()
    changed = replace(await store.get(job.name.removeprefix("jobs/")), **fields)  # type: ignore[arg-type]
    data = records.encode(changed, leave_out=frozenset({"epochs", "revision"}))
    active = [Put(f"training/active/{int(changed.created * 1e9):020d}.{changed.id}", changed.id.encode())]
    await kv.txn([], [Put(f"{JOBS}{changed.id}", data), *([] if changed.is_over else active)])


async def test_running_jobs_go_on_where_they_were(neighbours: World, kv: Kv) -> None:
    async with neighbours.training(kv=kv) as client:
        job = await client.create_job(spec("epoch:0", workers=2, epochs=3, register_as="models/flowers"))
        waiting = await client.create_job(spec())
        neighbours.open_gate("epoch-1")
        before = await state(client, job, State.STATE_RUNNING)
        async for before in client.watch_job(job.name):
            if before.epochs and all(worker.pid for worker in before.workers):
                break
    assert not alive(before), "workers end with the service"
    for number in (2, 3):
        neighbours.open_gate(f"epoch-{number}")
    async with neighbours.training(kv=kv) as client:
        done = await ended(client, job, State.STATE_SUCCEEDED)
        await ended(client, waiting, State.STATE_SUCCEEDED)
        text = [line async for line in client.logs(job.name)]
    assert done.epochs[0] == before.epochs[0], "what was finished is not done again"
    assert len(done.epochs) == 3
    assert [worker.attempt for worker in done.workers] == [1, 1]
    assert done.restarts == 0, "a restart of the service is no fault of the workers"
    assert done.result.model_version == "models/flowers/versions/1"
    assert [line.line for line in text] == list(range(len(text))), "the log goes on"


async def test_a_running_job_fails_when_its_parameters_are_gone(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("train:0"))
        await state(client, job, State.STATE_RUNNING)
    for group in await neighbours.groups():
        await neighbours.shards.admin.delete_group(group)
    async with neighbours.training() as client:
        done = await ended(client, job, State.STATE_FAILED)
    assert "the training service was restarted, and the parameters are lost" in done.error


async def test_a_starting_job_starts_again(neighbours: World) -> None:
    async with neighbours.training() as client:
        placed = await client.create_job(spec("start:0"))
        await until(lambda: _placed(client, placed))
    async with neighbours.training(max_running=2) as client:
        neighbours.open_gate("start")
        await ended(client, placed, State.STATE_SUCCEEDED)


async def _placed(client: TrainingClient, job: pb.Job) -> bool:
    return any(worker.pid for worker in (await client.get_job(job.name)).workers)


async def test_a_finishing_job_is_exported_by_a_new_worker(neighbours: World) -> None:
    async with neighbours.training() as client:
        job = await client.create_job(spec("export:0", workers=2, register_as="models/flowers"))
        before = await state(client, job, State.STATE_FINISHING)
    neighbours.open_gate("export")
    async with neighbours.training() as client:
        done = await ended(client, job, State.STATE_SUCCEEDED)
    assert done.epochs == before.epochs
    assert [(worker.rank, worker.attempt) for worker in done.workers] == [(0, 1), (1, 0)], "only rank 0 exports"


async def test_a_registration_that_broke_off_is_finished_and_made_once(neighbours: World, kv: Kv) -> None:
    async with neighbours.training(kv=kv) as client:
        job = await client.create_job(spec(register_as="models/flowers", alias="champion"))
        done = await ended(client, job, State.STATE_SUCCEEDED)
    entry = await kv.get(f"{JOBS}{job.name.removeprefix('jobs/')}")
    assert entry is not None
    stored = records.decode(Job, entry.value)
    assert stored.result is not None
    for result, committed in (
        (replace(stored.result, model_version=""), True),  # registered, but not yet noted
        (replace(stored.result, model_version="", logs=""), False),
        (stored.result, True),
    ):
        await edit(kv, job, state=JobState.FINISHING, result=result, committed=committed, ended=0.0)
        async with neighbours.training(kv=kv) as client:
            again = await ended(client, job, State.STATE_SUCCEEDED)
        assert again.result.model_version == done.result.model_version
        assert again.restarts == 0
    versions = [version.name async for version in neighbours.registry.list_versions("flowers")]
    assert versions == ["models/flowers/versions/1"]
    alias = await neighbours.registry.get_alias("flowers", "champion")
    assert (alias.version, alias.previous_version) == (1, 0)


async def test_a_job_that_was_to_stop_is_stopped(neighbours: World, kv: Kv) -> None:
    async with neighbours.training(kv=kv) as client:
        job = await client.create_job(spec("train:0"))
        await state(client, job, State.STATE_RUNNING)
    await edit(kv, job, state=JobState.CANCELLING)
    async with neighbours.training(kv=kv) as client:
        await ended(client, job, State.STATE_CANCELLED)

        async def cleared() -> bool:
            return not await neighbours.groups()

        await until(cleared)


async def test_the_registry_may_be_away_when_a_job_finishes(neighbours: World, kv: Kv) -> None:
    async with TcpProxy(neighbours.settings["registry_address"]) as registry:
        async with neighbours.training(kv=kv, registry_address=registry.address) as client:
            job = await client.create_job(spec("export:0", register_as="models/flowers"))
            await state(client, job, State.STATE_FINISHING)
            await registry.cut()
            neighbours.open_gate("export")
            await until(lambda: _tries_again(client, job))
            assert (await client.get_job(job.name)).state == State.STATE_FINISHING
        await edit(kv, job, committed=True)
        async with neighbours.training(kv=kv, registry_address=registry.address) as client:
            with pytest.raises(errors.FailedPrecondition) as late:
                await client.cancel_job(job.name)
            assert late.value.reason == "JOB_COMMITTED"
            registry.restore()
            done = await ended(client, job, State.STATE_SUCCEEDED)
    assert done.result.model_version == "models/flowers/versions/1"


async def _tries_again(client: TrainingClient, job: pb.Job) -> bool:
    return any(["fails and is tried again" in line.text async for line in client.logs(job.name)])


async def test_everything_may_be_away_at_the_start(neighbours: World) -> None:
    async with TcpProxy(neighbours.settings["registry_address"]) as registry:
        await registry.cut()
        async with neighbours.training(registry_address=registry.address, artifacts_address="127.0.0.1:1") as client:
            job = await client.create_job(spec())
            async for seen in client.watch_job(job.name):
                if seen.waiting.startswith("waits for 1 parameter shard: "):
                    break
            assert not (await client.catalogue()).optimizers
            with pytest.raises(errors.Unavailable):
                await client.create_job(spec(dataset={"artifact": "0" * 64}))
            registry.restore()
            await state(client, job, State.STATE_RUNNING)
            await client.cancel_job(job.name)
            await ended(client, job, State.STATE_CANCELLED)


async def serving(address: str) -> bool:
    caller = Caller(address, [])
    try:
        answer = await health_pb2_grpc.HealthStub(caller.channel).Check(
            health_pb2.HealthCheckRequest(service="tidemill.api.training.v1.TrainingService")
        )
    finally:
        await caller.close()
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def test_a_job_outlives_an_outage_of_the_store(neighbours: World, own_etcd: EtcdServer) -> None:
    async with neighbours.training(store=f"etcd://{own_etcd.address}") as client:
        address = neighbours.apps[0].address
        job = await client.create_job(spec("epoch:0", register_as="models/flowers"))
        await state(client, job, State.STATE_RUNNING)
        await until(lambda: serving(address))
        await asyncio.to_thread(own_etcd.kill)

        async def down() -> bool:
            return not await serving(address)

        await until(down, what="health tells that the store is away")
        with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
            await client.create_job(spec())
        for number in (1, 2):
            neighbours.open_gate(f"epoch-{number}")
        await asyncio.to_thread(own_etcd.start)
        done = await ended(client, job, State.STATE_SUCCEEDED)
    assert done.restarts == 0
    assert [worker.attempt for worker in done.workers] == [0], "its workers were left alone"


async def test_the_store_may_be_away_at_the_start(neighbours: World, own_etcd: EtcdServer) -> None:
    await asyncio.to_thread(own_etcd.kill)
    async with neighbours.training(store=f"etcd://{own_etcd.address}") as client:
        assert not await serving(neighbours.apps[0].address)
        await asyncio.to_thread(own_etcd.start)
        await until(lambda: serving(neighbours.apps[0].address))
        await ended(client, await client.create_job(spec()), State.STATE_SUCCEEDED)


async def test_of_two_services_one_leads_and_the_other_takes_over(neighbours: World, etcd_server: EtcdServer) -> None:
    prefix = fresh_prefix()
    async with (
        etcd_kv(etcd_server.address, prefix=prefix) as first_kv,
        etcd_kv(etcd_server.address, prefix=prefix) as second_kv,
        neighbours.training(kv=second_kv, data=str(neighbours.folder / "second" / "training")) as second,
    ):
        first_running = neighbours.training(kv=first_kv)
        first = await first_running.__aenter__()
        job = await second.create_job(spec("train:0"))
        running = await state(second, job, State.STATE_RUNNING)
        other = await first.create_job(spec("train:0"))
        assert (await second.cancel_job(other.name)).state == State.STATE_CANCELLED
        await first_running.__aexit__(None, None, None)
        (neighbours.folder / "second" / "gates").mkdir(exist_ok=True)
        (neighbours.folder / "second" / "gates" / "train").touch()
        neighbours.open_gate("train")
        done = await ended(second, job, State.STATE_SUCCEEDED)
        assert not alive(running)
    assert len(done.epochs) == 2


async def at_work(client: TrainingClient, neighbours: World, script: str = "epoch:0", **fields: object) -> pb.Job:
    """A job with two workers that has done its first epoch."""
    job = await client.create_job(spec(script, workers=2, register_as="models/flowers", **fields))
    neighbours.open_gate("epoch-1")
    async for before in client.watch_job(job.name):
        if before.epochs and all(worker.pid and worker.phase == "training" for worker in before.workers):
            return before
    raise AssertionError(f"{job.name} ended as {State.Name(before.state)}: {before.error}")


async def test_a_killed_service_finds_its_workers_again(neighbours: World) -> None:
    async with process(neighbours, port=free_ports(1)[0]) as service:
        async with TrainingClient(await service.start()) as client:
            before = await at_work(client, neighbours)
        assert await service.end(signal.SIGKILL) == -signal.SIGKILL
        assert len(alive(before)) == 2, "workers go on without the service"
        async with TrainingClient(await service.start()) as client:
            found = await state(client, before, State.STATE_RUNNING)
            neighbours.open_gate("epoch-2")
            done = await ended(client, before, State.STATE_SUCCEEDED)
            text = [line async for line in client.logs(before.name)]
        assert await service.end(signal.SIGTERM) == 0
    assert [worker.pid for worker in found.workers] == [worker.pid for worker in before.workers]
    assert [worker.attempt for worker in done.workers] == [0, 0], "none was started twice"
    assert done.restarts == 0
    assert done.progress.samples == 100, "no sample is counted twice"
    assert done.epochs[0] == before.epochs[0]
    assert done.result.model_version == "models/flowers/versions/1"
    assert [line.line for line in text] == list(range(len(text)))
    printed = [line.text for line in text if line.rank == 0]
    assert printed == [
        f"rank 0 attempt 0 of {before.name}",
        "training",
        "epoch 1 is done",
        "epoch 2 is done",
        "the result is there",
    ], "each line is there once"


async def test_what_workers_did_meanwhile_counts(neighbours: World) -> None:
    """One dies and the other goes on while the service is away; its lines are there, and its death is counted."""
    async with process(neighbours, port=free_ports(1)[0]) as service:
        async with TrainingClient(await service.start()) as client:
            before = await at_work(client, neighbours)
        assert await service.end(signal.SIGKILL) == -signal.SIGKILL
        os.kill(before.workers[1].pid, signal.SIGKILL)
        await until(lambda: not lives(before.workers[1].pid))
        neighbours.open_gate("epoch-2")
        async with TrainingClient(await service.start()) as client:
            done = await ended(client, before, State.STATE_SUCCEEDED)
            text = [line.text async for line in client.logs(before.name)]
        assert await service.end(signal.SIGTERM) == 0
    assert done.workers[0].attempt == 0
    if done.workers[1].attempt:  # unless the training was over before it was seen to be dead
        assert (done.restarts, done.workers[1].attempt) == (1, 1)
        assert "worker 1, attempt 0: was killed by SIGKILL" in text


async def test_workers_that_nobody_comes_back_to_end(neighbours: World) -> None:
    async with process(neighbours, worker_abandoned_seconds=0.5) as service:
        async with TrainingClient(await service.start()) as client:
            before = await at_work(client, neighbours)
        assert await service.end(signal.SIGKILL) == -signal.SIGKILL
        await until(lambda: not alive(before), what="workers end")
        neighbours.open_gate("epoch-2")
        async with TrainingClient(await service.start()) as client:
            done = await ended(client, before, State.STATE_SUCCEEDED)
        assert await service.end(signal.SIGTERM) == 0
    assert (done.restarts, [worker.attempt for worker in done.workers]) == (0, [1, 1])


async def test_a_job_that_is_cancelled_while_the_service_is_away_frees_its_workers(neighbours: World) -> None:
    async with process(neighbours, port=free_ports(1)[0]) as service:
        async with TrainingClient(await service.start()) as client:
            before = await at_work(client, neighbours, "epoch:0 stubborn:1")
            await client.cancel_job(before.name)
            assert await service.end(signal.SIGKILL) == -signal.SIGKILL
        async with TrainingClient(await service.start()) as client:
            await ended(client, before, State.STATE_CANCELLED)
        assert not alive(before)
        assert await service.end(signal.SIGTERM) == 0


async def test_what_is_left_of_jobs_that_are_gone_is_swept_up(neighbours: World) -> None:
    async with process(neighbours) as service:
        async with TrainingClient(await service.start()) as client:
            before = await at_work(client, neighbours)
        assert await service.end(signal.SIGKILL) == -signal.SIGKILL
        assert len(alive(before)) == 2
        for file in neighbours.folder.glob("training.db*"):
            file.unlink()
        await service.start()
        await until(lambda: not alive(before))
        await until(lambda: not list((neighbours.folder / "training" / "scratch").iterdir()))
        assert await service.end(signal.SIGTERM) == 0


async def test_newer_data_are_refused_in_one_line(neighbours: World) -> None:
    (neighbours.folder / "training").mkdir()
    (neighbours.folder / "training" / "FORMAT").write_text("3\n")
    with pytest.raises(errors.FailedPrecondition) as refused:
        async with neighbours.training():
            pass
    assert refused.value.reason == "DATA_VERSION_NEWER"


async def test_two_services_do_not_share_a_data_directory(neighbours: World) -> None:
    async with neighbours.training():
        with pytest.raises(errors.FailedPrecondition) as refused:
            async with neighbours.training():
                pass
    assert refused.value.reason == "DATA_IN_USE"
