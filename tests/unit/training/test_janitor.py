"""What ended jobs leave behind goes, however often that has to be tried, and nothing else goes."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.clock import ManualClock
from tests.support.wait import until
from tidemill import errors
from tidemill.kv.base import Kv
from tidemill.kv.sqlite import SqliteKv
from tidemill.training.changes import Changes
from tidemill.training.diagnosis.sights import ShardSight
from tidemill.training.janitor import GROUP_LIFE, INTERVAL, Janitor
from tidemill.training.jobs import Job, cancel
from tidemill.training.peers import Entry
from tidemill.training.spec import JobSpec
from tidemill.training.store import Duty, JobStore


class FakeShards:
    """Remembers what is deleted."""

    def __init__(self) -> None:
        self.away = False
        self.asked = 0
        self.deleted: list[tuple[str, tuple[str, ...]]] = []

    async def look(self, group: str, address: str) -> ShardSight:
        raise AssertionError("not asked here")

    async def delete_group(self, group: str, addresses: Sequence[str]) -> None:
        self.asked += 1
        if self.away:
            raise errors.Unavailable("away")
        self.deleted.append((group, tuple(addresses)))

    async def live(self) -> Sequence[str]:
        return []

    async def check_optimizer(self, address: str, name: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        return {}

    async def optimizers(self, address: str) -> Sequence[Entry]:
        return []

    async def check_group(self, group: str, addresses: Sequence[str]) -> None:
        """It is there."""

    async def check_copies(self, group: str, addresses: Sequence[str]) -> None:
        """It is there."""


class FakeArtifacts:
    """Remembers what is released."""

    def __init__(self) -> None:
        self.released: list[tuple[str, str, bool]] = []

    address = "nowhere:1"

    async def release(self, digest: str, reference: str, *, delete: bool) -> None:
        self.released.append((digest, reference, delete))

    async def kind(self, digest: str) -> str:
        return "dataset"

    async def refer(self, digest: str, reference: str) -> None:
        """Done."""

    async def upload(self, kind: str, files: Mapping[str, Path], labels: Mapping[str, str], reference: str) -> str:
        return ""

    async def lines(self, digest: str, name: str) -> AsyncIterator[bytes]:
        yield b""


class Scene:
    """A janitor at work."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.shards = FakeShards()
        self.artifacts = FakeArtifacts()
        self.clock = ManualClock()
        self.changes = Changes()
        self.janitor = Janitor(store, self.shards, self.artifacts, self.changes, self.clock)

    async def left(self, *duties: Duty, job: str = "a", uid: str = "u") -> Job:
        """A job that has ended and left these duties."""
        made = await self.store.create(Job(id=job, uid=uid, spec=JobSpec(), created=1.0))
        stored = await self.store.save(cancel(made, 1.0), duties=duties)
        self.changes.touch(job)
        return stored

    async def idle(self) -> None:
        """Wait until it sleeps."""
        await self.clock.until_sleeping(1)

    async def done(self) -> bool:
        return not await self.store.duties()


@pytest.fixture
async def kv() -> AsyncIterator[Kv]:
    opened = await SqliteKv.open(":memory:")
    yield opened
    await opened.close()


@asynccontextmanager
async def scene(kv: Kv) -> AsyncIterator[Scene]:
    async def opener() -> Kv:
        return kv

    store = JobStore(opener)
    await store.open()
    set_up = Scene(store)
    task = asyncio.create_task(set_up.janitor.run())
    try:
        yield set_up
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


GROUP = Duty(uid="u", kind="group", job="jobs/a", group="groups/a-u", shards=("x:1",), created=1_700_000_000.0)
OUTPUTS = Duty(uid="u", kind="leftovers", job="jobs/a", artifacts=("m" * 64,), inputs=("d" * 64,))


async def test_groups_and_artifacts_go(kv: Kv) -> None:
    async with scene(kv) as stage:
        job = await stage.left(GROUP)
        await until(stage.done)
        assert stage.shards.deleted == [("groups/a-u", ("x:1",))]
        await stage.store.delete(job, [OUTPUTS])
        stage.changes.touch("a")
        await until(stage.done)
        assert set(stage.artifacts.released) == {("d" * 64, "jobs/a", False), ("m" * 64, "jobs/a", True)}


async def test_what_fails_is_tried_again_but_not_all_the_time(kv: Kv) -> None:
    async with scene(kv) as stage:
        stage.shards.away = True
        await stage.left(GROUP)
        await until(lambda: stage.shards.asked == 1)
        for _ in range(5):
            stage.changes.touch("a")
            await stage.idle()
        assert stage.shards.asked == 1
        await stage.clock.advance(INTERVAL + 1)
        await until(lambda: stage.shards.asked == 2)
        stage.shards.away = False
        await stage.idle()
        await stage.clock.advance(INTERVAL + 1)
        await until(stage.done)


async def test_a_shard_that_never_comes_back_is_given_up(kv: Kv) -> None:
    async with scene(kv) as stage:
        stage.shards.away = True
        await stage.left(replace(GROUP, created=stage.clock.now() - GROUP_LIFE - 1))
        await until(stage.done)


async def test_what_a_later_job_of_the_same_name_needs_stays(kv: Kv) -> None:
    async with scene(kv) as stage:
        first = await stage.left()
        second_duty = replace(OUTPUTS, uid="v")
        await stage.store.delete(first, [])
        second = await stage.left(uid="v")
        await kv.put(OUTPUTS.key, b'{"uid":"u","kind":"leftovers","job":"jobs/a","artifacts":["' + b"m" * 64 + b'"]}')
        stage.changes.touch("a")
        await stage.idle()
        await stage.clock.advance(INTERVAL + 1)
        assert stage.artifacts.released == []
        await stage.store.delete(second, [second_duty])
        await stage.idle()
        await stage.clock.advance(INTERVAL + 1)
        await until(stage.done)
        assert ("m" * 64, "jobs/a", True) in stage.artifacts.released
