"""Changes of a job at work happen exactly once, whatever the store loses, and stop when the job is another's."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.support.clock import ManualClock
from tests.support.faulty_kv import Fault, FaultyKv
from tests.support.wait import until
from tidemill import errors
from tidemill.kv.base import Kv
from tidemill.kv.sqlite import SqliteKv
from tidemill.training.changes import Changes
from tidemill.training.jobs import Job, State, cancel, move
from tidemill.training.ledger import CancelAsked, Fenced, Ledger
from tidemill.training.spec import JobSpec
from tidemill.training.store import JobStore


class ImpatientClock(ManualClock):
    """Pauses take no time."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


@pytest.fixture
async def kv() -> AsyncIterator[Kv]:
    opened = await SqliteKv.open(":memory:")
    yield opened
    await opened.close()


async def store_on(kv: Kv) -> JobStore:
    async def opener() -> Kv:
        return kv

    store = JobStore(opener)
    await store.open()
    return store


async def started(store: JobStore, owner: str = "me") -> Job:
    made = await store.create(Job(id="a", uid="u", spec=JobSpec(), created=1.0))
    return await store.save(replace(move(made, State.STARTING, 1.0), owner=owner))


def ledger(job: Job, store: JobStore, owner: str = "me") -> Ledger:
    return Ledger(job, owner, store, Changes(), ImpatientClock())


def counted(job: Job) -> Job:
    return replace(job, restarts=job.restarts + 1)


@pytest.mark.parametrize("seed", range(8))
async def test_every_change_is_made_once_whatever_gets_lost(kv: Kv, seed: int) -> None:
    store = await store_on(kv)
    job = await started(store)
    choice = random.Random(seed)
    own = ledger(job, await store_on(FaultyKv(kv, lambda: choice.choice(list(Fault)))))
    for number in range(1, 30):
        assert (await own.change(counted)).restarts == number
    await own.change(lambda job: move(job, State.FAILED, 2.0, error="x"))
    found = await store.get("a")
    assert (found.restarts, found.state) == (29, State.FAILED)


async def test_another_owner_is_noticed_and_nothing_is_written_any_more(kv: Kv) -> None:
    store = await store_on(kv)
    job = await started(store)
    own = ledger(job, store)
    await own.change(counted)
    taken = await store.save(replace(await store.get("a"), owner="you"))
    other = ledger(taken, store, "you")
    await other.change(counted)
    with pytest.raises(Fenced):
        await own.change(counted)
    with pytest.raises(Fenced):
        await own.follow()
    assert (await store.get("a")).restarts == 2


async def test_of_two_owners_that_race_only_one_acts(kv: Kv) -> None:
    store = await store_on(kv)
    job = await started(store)
    own = ledger(job, store)
    acted: list[str] = []

    async def act() -> None:
        while True:
            await own.change(counted)
            acted.append("me")
            await asyncio.sleep(0.001)  # or nobody else would ever be fast enough

    async def take_over() -> None:
        await until(lambda: len(acted) >= 5)
        while True:
            found = await store.get("a")
            try:
                taken = await store.save(replace(found, owner="you"))
                break
            except errors.Stale:
                continue
        other = ledger(taken, store, "you")
        for _ in range(20):
            await other.change(counted)
            acted.append("you")

    outcome = await asyncio.gather(act(), take_over(), return_exceptions=True)
    assert isinstance(outcome[0], Fenced)
    assert acted[-20:] == ["you"] * 20
    assert (await store.get("a")).restarts == len(acted), "what was acknowledged is there, and nothing else"


async def test_a_wish_to_stop_is_noticed(kv: Kv) -> None:
    store = await store_on(kv)
    own = ledger(await started(store), store)
    await store.save(cancel(await store.get("a"), 2.0))
    with pytest.raises(CancelAsked):
        await own.change(counted)
    with pytest.raises(CancelAsked):
        await own.follow()
    ended = await own.change(lambda job: move(job, State.CANCELLED, 3.0), cancelling=True)
    assert ended.state is State.CANCELLED
    with pytest.raises(Fenced):
        await own.change(counted)


async def test_a_change_that_changes_nothing_writes_nothing(kv: Kv) -> None:
    store = await store_on(kv)
    job = await started(store)
    assert await ledger(job, store).change(lambda job: job) == job
    assert (await store.get("a")).revision == job.revision


async def test_a_job_that_is_deleted_is_let_go_of(kv: Kv) -> None:
    store = await store_on(kv)
    job = await started(store)
    own = ledger(job, store)
    await store.delete(job, [])
    with pytest.raises(Fenced):
        await own.change(counted)
