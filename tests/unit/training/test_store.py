"""Jobs in the store: one of two makers wins, requests are made once, lists and what is left to do are complete."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.etcd import EtcdServer
from tests.support.faulty_kv import Fault, FaultyKv
from tests.support.kv import etcd_kv, fresh_prefix
from tidemill import errors
from tidemill.kv.base import Entry, Kv
from tidemill.kv.open import open_kv
from tidemill.training.epochs import Epoch, Metrics, Result
from tidemill.training.jobs import Job, State, Worker, cancel, move
from tidemill.training.spec import Component, JobSpec
from tidemill.training.store import Duty, JobStore, Listed


@pytest.fixture(params=["sqlite", "etcd"])
async def kv(request: pytest.FixtureRequest, tmp_path: Path, etcd_server: EtcdServer) -> AsyncIterator[Kv]:
    if request.param == "etcd":
        async with etcd_kv(etcd_server.address, prefix=fresh_prefix()) as opened:
            yield opened
        return
    in_file = await open_kv(f"sqlite:///{tmp_path}/jobs.db")
    yield in_file
    await in_file.close()


@pytest.fixture
async def store(kv: Kv) -> JobStore:
    return await opened(kv)


async def opened(kv: Kv) -> JobStore:
    async def opener() -> Kv:
        return kv

    store = JobStore(opener)
    await store.open()
    return store


def job(name: str, created: float = 1.5e9, **fields: object) -> Job:
    spec = JobSpec(model=Component(name="mlp", parameters={"hidden": [3, 4], "dropout": 0.5}), max_restarts=0)
    return Job(id=name, uid=f"uid-{name}", spec=spec, created=created, **fields)  # type: ignore[arg-type]


async def test_a_job_comes_back_as_it_was_stored(store: JobStore) -> None:
    made = await store.create(job("a", traceparent="00-1-2-03"))
    assert await store.get("a") == made
    epoch = Epoch(epoch=1, validation=Metrics(loss=1 / 3, samples=9), best=True)
    result = Result(artifact="a" * 64, test=Metrics(accuracy=0.1))
    full = replace(
        made, epochs=(epoch,), result=result, workers=(Worker(rank=0, pid=7, heartbeat=1.25),), shards=("x:1",)
    )
    stored = await store.save(full)
    assert stored.revision > made.revision
    assert await store.get("a") == stored
    assert replace(stored, revision=0) == replace(full, revision=0)
    with pytest.raises(errors.NotFound):
        await store.get("b")


async def test_of_two_changes_of_the_same_job_one_wins(store: JobStore) -> None:
    made = await store.create(job("a"))
    outcomes = await asyncio.gather(
        *(store.save(replace(made, owner=f"orchestrator {number}")) for number in range(5)), return_exceptions=True
    )
    (won,) = [outcome for outcome in outcomes if isinstance(outcome, Job)]
    assert all(isinstance(outcome, Job | errors.Stale) for outcome in outcomes)
    assert await store.get("a") == won
    with pytest.raises(errors.Stale):
        await store.delete(made, [])


async def test_names_are_taken_once(store: JobStore) -> None:
    outcomes = await asyncio.gather(
        *(store.create(replace(job("a"), uid=f"uid{number}")) for number in range(5)), return_exceptions=True
    )
    assert sum(isinstance(outcome, Job) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, errors.AlreadyExists) for outcome in outcomes) == 4


async def test_a_request_creates_one_job(store: JobStore) -> None:
    attempts = [replace(job(f"a{number}"), fingerprint="same") for number in range(5)]
    made = await asyncio.gather(*(store.create(each, "request") for each in attempts))
    assert len({each.uid for each in made}) == 1
    with pytest.raises(errors.Invalid):
        await store.create(replace(job("other"), fingerprint="another"), "request")
    found = await store.of_request("request", "same")
    assert found == made[0]
    ended = await store.save(cancel(made[0], 1))
    await store.delete(ended, [])
    assert await store.of_request("request", "same") is None, "it is forgotten with its job"


async def test_pages_hold_every_job_once_newest_first(store: JobStore) -> None:
    for number in range(7):
        made = await store.create(job(f"j{number}", created=1.5e9 + number))
        if number % 3 == 0:
            await store.save(cancel(made, 1))
    found: list[Listed] = []
    after, more = "", True
    while more:
        page, more = await store.page(2, after, None)
        assert len(page) <= 2
        found += page
        after = page[-1].position if page else after
    assert [each.job.id for each in found] == [f"j{number}" for number in range(6, -1, -1)]
    cancelled, _ = await store.page(10, "", State.CANCELLED)
    assert [each.job.id for each in cancelled] == ["j6", "j3", "j0"]
    rest, _ = await store.page(10, cancelled[1].position, State.CANCELLED)
    assert [each.job.id for each in rest] == ["j0"]
    assert [each.id for each in await store.active()] == ["j1", "j2", "j4", "j5"], "oldest first"
    assert await store.count_active() == 4


async def test_duties_are_stored_with_the_change_that_makes_them(store: JobStore) -> None:
    made = await store.create(job("a"))
    duty = Duty(uid=made.uid, kind="group", job=made.name, group=made.group, shards=("x:1", "y:2"), created=3.0)
    with pytest.raises(errors.Stale):
        await store.save(replace(made, revision=made.revision - 1), duties=[duty])
    assert await store.duties() == []
    stored = await store.save(cancel(made, 1), duties=[duty])
    assert await store.duties() == [duty]
    await store.done(duty)
    assert await store.duties() == []
    await store.delete(stored, [duty])
    assert await store.duties() == [duty]
    assert await store.find("a") is None


async def test_many_epochs_fit(store: JobStore) -> None:
    made = await store.create(job("a"))
    made = replace(made, state=State.RUNNING)
    for number in range(1, 30):
        made = await store.save(replace(made, epochs=(*made.epochs, Epoch(epoch=number, seconds=number / 7))))
    assert [epoch.epoch for epoch in (await store.get("a")).epochs] == list(range(1, 30))


async def test_a_job_is_read_with_the_epochs_that_it_had_when_it_was_stored(kv: Kv) -> None:
    class Later(FaultyKv):
        """Somebody stores another epoch and the next state between the reads of a job and of its epochs."""

        async def get(self, key: str) -> Entry | None:
            found = await super().get(key)
            if story:
                await (await opened(kv)).save(story.pop())
            return found

    story: list[Job] = []
    first = await opened(kv)
    running = move(move(await first.create(job("a")), State.STARTING, 1.0), State.RUNNING, 2.0)
    running = await first.save(replace(running, epochs=(Epoch(epoch=1),)))
    second = await opened(Later(kv, lambda: Fault.NONE))
    story.append(move(replace(running, epochs=(*running.epochs, Epoch(epoch=2))), State.FINISHING, 3.0))
    found = await second.get("a")
    assert (found.state, len(found.epochs)) == (State.RUNNING, 1)
    assert (await second.get("a")).state is State.FINISHING
    assert len((await second.get("a")).epochs) == 2


async def test_changes_are_heard_of(store: JobStore) -> None:
    heard: list[frozenset[str]] = []
    ready = asyncio.Event()

    async def listen() -> None:
        async for ids in store.changes():
            heard.append(ids)
            ready.set()
            if "b" in ids:
                return

    listening = asyncio.create_task(listen())
    await ready.wait()
    made = await store.create(job("a"))
    await store.save(cancel(made, 1))
    await store.create(job("b"))
    async with asyncio.timeout(20):
        await listening
    assert heard[0] == frozenset()
    assert frozenset().union(*heard) == {"a", "b"}


async def test_a_newer_store_is_refused(kv: Kv, store: JobStore) -> None:
    await kv.put("training/format", b"2")
    with pytest.raises(errors.FailedPrecondition) as refused:
        await opened(kv)
    assert refused.value.reason == "DATA_VERSION_NEWER"


async def test_a_job_that_was_created_without_an_answer_is_found(kv: Kv) -> None:
    faults = [Fault.NONE]  # for the format
    store = await opened(FaultyKv(kv, lambda: faults.pop(0) if faults else Fault.NONE))
    faults[:] = [Fault.LOST_ANSWER]
    made = await store.create(job("a"))
    assert (await store.get("a")).uid == made.uid
    faults[:] = [Fault.LOST_REQUEST]
    with pytest.raises(errors.Unavailable):
        await store.create(job("b"))
    assert await store.find("b") is None
