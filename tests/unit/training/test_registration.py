"""Results become versions step by step; wherever that breaks off, it is finished later, and nothing happens twice."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.clock import ManualClock
from tidemill import errors
from tidemill.kv.base import Kv
from tidemill.kv.sqlite import SqliteKv
from tidemill.training.changes import Changes
from tidemill.training.epochs import Metrics, Result
from tidemill.training.jobs import Job, State
from tidemill.training.ledger import Ledger
from tidemill.training.peers import AliasState, NewVersion
from tidemill.training.registration import Registration
from tidemill.training.spec import JobSpec
from tidemill.training.store import JobStore

MODEL, SAMPLES, LOGS = "a" * 64, "b" * 64, "c" * 64


class Crash(BaseException):
    """The process ends."""


class World:
    """A registry and an artifact store, that outlive the process, which may end before or after any call to them."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.crash_at = -1
        self.after = False
        self.references: set[tuple[str, str]] = set()
        self.models: set[str] = set()
        self.versions: dict[str, int] = {}
        self.unprotected: list[str] = []
        self.moves: list[int] = []
        self.before: list[AliasState] = []

    address = "nowhere:1"

    def _begins(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) - 1 == self.crash_at and not self.after:
            raise Crash

    def _ends(self) -> None:
        if len(self.calls) - 1 == self.crash_at and self.after:
            raise Crash

    async def kind(self, digest: str) -> str:
        return "model"

    async def refer(self, digest: str, reference: str) -> None:
        self._begins(f"refer {digest[:1]} {reference}")
        self.references.add((digest, reference))
        self._ends()

    async def release(self, digest: str, reference: str, *, delete: bool) -> None:
        raise AssertionError("nothing is released here")

    async def upload(self, kind: str, files: Mapping[str, Path], labels: Mapping[str, str], reference: str) -> str:
        self._begins("upload")
        self.references.add((LOGS, reference))
        self._ends()
        return LOGS

    async def lines(self, digest: str, name: str) -> AsyncIterator[bytes]:
        yield b""

    async def ensure_model(self, model: str) -> None:
        self._begins("ensure")
        self.models.add(model)
        self._ends()

    async def create_version(self, version: NewVersion) -> int:
        self._begins("version")
        if version.model not in self.models:
            raise errors.NotFound("no such model")
        if not {(MODEL, "jobs/a"), (SAMPLES, "jobs/a")} <= self.references:
            self.unprotected.append("the artifact of a visible version")
        number = self.versions.setdefault(version.request_id, len(self.versions) + 1)
        self._ends()
        return number

    @property
    def state(self) -> AliasState:
        """Where the alias points."""
        moves = [0, 0, *self.moves]
        return AliasState(version=moves[-1], previous=moves[-2], etag=str(len(self.moves)))

    async def alias(self, model: str, alias: str) -> AliasState:
        self._begins("alias")
        found = self.state
        self._ends()
        return found

    async def move_alias(self, model: str, alias: str, version: int, etag: str) -> None:
        self._begins("move")
        if etag != self.state.etag:
            raise errors.Stale("moved")
        self.moves.append(version)
        self._ends()


@pytest.fixture
async def kv() -> AsyncIterator[Kv]:
    opened = await SqliteKv.open(":memory:")
    yield opened
    await opened.close()


async def ledger(kv: Kv, spec: JobSpec) -> Ledger:
    """The job as it is stored, in the hands of a new process."""

    async def opener() -> Kv:
        return kv

    store = JobStore(opener)
    await store.open()
    job = await store.find("a")
    if job is None:
        result = Result(artifact=MODEL, test_samples=SAMPLES, test=Metrics(accuracy=0.5), parity=0.1)
        made = Job(id="a", uid="u", spec=spec, state=State.FINISHING, owner="me", result=result, created=1.0)
        job = await store.create(made)
    return Ledger(job, "me", store, Changes(), ManualClock())


FULL = JobSpec(register_as="models/m", alias="champion")


async def finish(world: World, kv: Kv, spec: JobSpec = FULL) -> Job:
    own = await ledger(kv, spec)
    registration = Registration(artifacts=world, registry=world, clock=ManualClock())
    await registration.run(own, Path("log"), lambda text: None)
    return own.job


async def test_the_steps_come_in_order(kv: Kv) -> None:
    world = World()
    job = await finish(world, kv)
    assert world.calls == [
        "refer a jobs/a", "refer b jobs/a", "upload", "ensure", "version",
        "refer a models/m/versions/1", "refer b models/m/versions/1", "alias", "move",
    ]  # fmt: skip
    assert job.result is not None
    assert (job.result.model_version, job.result.logs, job.committed) == ("models/m/versions/1", LOGS, True)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(9))
async def test_wherever_it_breaks_off_it_is_finished_and_made_once(kv: Kv, step: int, after: bool) -> None:
    world = World()
    world.crash_at, world.after = step, after
    with pytest.raises(Crash):
        await finish(world, kv)
    job = await finish(world, kv)
    assert world.versions == {"job-u": 1}
    assert world.moves == [1]
    assert world.unprotected == []
    assert {(MODEL, "models/m/versions/1"), (SAMPLES, "models/m/versions/1")} <= world.references
    assert job.result is not None
    assert job.result.model_version == "models/m/versions/1"


async def test_an_alias_that_somebody_has_moved_on_is_left_alone(kv: Kv) -> None:
    world = World()
    world.crash_at, world.after = 8, True
    with pytest.raises(Crash):
        await finish(world, kv)
    world.moves.append(7)
    await finish(world, kv)
    assert world.moves == [1, 7]


async def test_without_a_model_nothing_is_registered(kv: Kv) -> None:
    world = World()
    job = await finish(world, kv, JobSpec())
    assert world.calls == ["refer a jobs/a", "refer b jobs/a", "upload"]
    assert not job.committed


async def test_what_the_registry_refuses_for_good_ends_it(kv: Kv) -> None:
    class Refusing(World):
        async def create_version(self, version: NewVersion) -> int:
            raise errors.Invalid("this is no signature")

    with pytest.raises(errors.Invalid):
        await finish(Refusing(), kv)


async def test_a_model_that_was_deleted_meanwhile_is_made_again(kv: Kv) -> None:
    class Deleting(World):
        deleted = False

        async def create_version(self, version: NewVersion) -> int:
            if not self.deleted:
                self.deleted = True
                self.models.clear()
            return await super().create_version(version)

    job = await finish(Deleting(), kv, replace(FULL, alias=""))
    assert job.result is not None
    assert job.result.model_version == "models/m/versions/1"
