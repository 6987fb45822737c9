"""Where parameter groups go, and how long jobs wait for shards."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tests.support.clock import ManualClock
from tidemill import errors
from tidemill.kv.base import Kv
from tidemill.kv.sqlite import SqliteKv
from tidemill.training.changes import Changes
from tidemill.training.diagnosis.sights import ShardSight
from tidemill.training.jobs import Job, State, move
from tidemill.training.ledger import Ledger
from tidemill.training.peers import Entry
from tidemill.training.placement import JobFailed, Placement
from tidemill.training.spec import Component, JobSpec
from tidemill.training.store import JobStore


class FakeShards:
    """Shards that are live, dead though announced, or hidden by a registry that is away."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.dead: set[str] = set()
        self.registry_away = False

    async def live(self) -> Sequence[str]:
        if self.registry_away:
            raise errors.Unavailable("the registry is away")
        return self.addresses

    async def check_optimizer(self, address: str, name: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        if address in self.dead:
            raise errors.Unavailable("dead")
        if name != "adam":
            raise errors.invalid("optimizer.name", "is unknown")
        return {"learning_rate": 0.1, **parameters}

    async def optimizers(self, address: str) -> Sequence[Entry]:
        raise AssertionError("not asked here")

    async def check_group(self, group: str, addresses: Sequence[str]) -> None:
        raise AssertionError("not asked here")

    async def check_copies(self, group: str, addresses: Sequence[str]) -> None:
        raise AssertionError("not asked here")

    async def look(self, group: str, address: str) -> ShardSight:
        raise AssertionError("not asked here")

    async def delete_group(self, group: str, addresses: Sequence[str]) -> None:
        raise AssertionError("not asked here")


class JumpingClock(ManualClock):
    """Waiting moves the time."""

    def __init__(self) -> None:
        super().__init__()
        self.then: dict[float, Any] = {}

    async def sleep(self, seconds: float) -> None:
        self.jump(seconds)
        for moment in [moment for moment in self.then if moment <= self.monotonic()]:
            self.then.pop(moment)()


@pytest.fixture
async def kv() -> AsyncIterator[Kv]:
    opened = await SqliteKv.open(":memory:")
    yield opened
    await opened.close()


async def ledger(kv: Kv, **spec: Any) -> Ledger:
    async def opener() -> Kv:
        return kv

    store = JobStore(opener)
    await store.open()
    optimizer = spec.pop("optimizer", Component(name="adam", parameters={"beta": 1}))
    made = await store.create(Job(id="a", uid="u", spec=JobSpec(optimizer=optimizer, **spec), created=1.0))
    started = await store.save(replace(move(made, State.STARTING, 1.0), owner="me"))
    return Ledger(started, "me", store, Changes(), ManualClock())


async def test_the_least_loaded_shards_are_taken(kv: Kv) -> None:
    placement = Placement(FakeShards("a:1", "b:1", "c:1"), ManualClock(), 10)
    placement.note(
        [
            Job(id="x", uid="x", spec=JobSpec(), shards=("a:1", "b:1")),
            Job(id="y", uid="y", spec=JobSpec(), shards=("a:1",)),
        ]
    )
    found = await ledger(kv, shards=2)
    told: list[str] = []
    await placement.place(found, told.append)
    assert found.job.shards == ("c:1", "b:1")
    assert found.job.spec.optimizer.parameters == {"learning_rate": 0.1, "beta": 1}
    assert told == ["parameters go to c:1, b:1"]


async def test_shards_that_are_announced_but_dead_are_passed_over(kv: Kv) -> None:
    shards = FakeShards("a:1", "b:1")
    shards.dead = {"a:1"}
    found = await ledger(kv, shards=1)
    await Placement(shards, ManualClock(), 10).place(found, lambda text: None)
    assert found.job.shards == ("b:1",)


async def test_it_waits_and_says_what_for(kv: Kv) -> None:
    shards, clock = FakeShards("a:1"), JumpingClock()
    shards.registry_away = True
    told: list[str] = []
    clock.then = {
        3.0: lambda: setattr(shards, "registry_away", False),
        6.0: lambda: shards.addresses.append("b:1"),
        9.0: lambda: shards.addresses.append("c:1"),
    }
    found = await ledger(kv, shards=3)
    await Placement(shards, clock, 10).place(found, told.append)
    assert told == [
        "waits for 3 parameter shards: the registry is away",
        "waits for 3 parameter shards, 1 is live",
        "waits for 3 parameter shards, 2 are live",
        "parameters go to a:1, b:1, c:1",
    ]
    assert found.job.waiting == ""
    assert clock.monotonic() == 9


async def test_it_does_not_wait_for_ever(kv: Kv) -> None:
    clock = JumpingClock()
    found = await ledger(kv, shards=2)
    with pytest.raises(JobFailed, match="waits for 2 parameter shards, 0 are live, 10 s long"):
        await Placement(FakeShards(), clock, 10).place(found, lambda text: None)
    assert clock.monotonic() == 10


async def test_an_optimizer_that_nobody_knows_fails_the_job(kv: Kv) -> None:
    found = await ledger(kv, shards=1, optimizer=Component(name="lion"))
    with pytest.raises(JobFailed, match=r"optimizer lion: optimizer\.name: is unknown"):
        await Placement(FakeShards("a:1"), ManualClock(), 10).place(found, lambda text: None)


async def test_what_was_chosen_before_a_restart_stays(kv: Kv) -> None:
    found = await ledger(kv, shards=1)
    await found.change(lambda job: replace(job, shards=("z:1",)))
    await Placement(FakeShards("a:1"), ManualClock(), 10).place(found, lambda text: None)
    assert found.job.shards == ("z:1",)
