"""Following a registry that moves, trims its log and goes away."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from tests.support.clock import ManualClock
from tests.support.wait import until
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.errors import NotFound, OutOfRange, TidemillError, Unavailable
from tidemill.inference.desired import Desired
from tidemill.inference.follower import Follower

CREATED, UPDATED, DELETED = pb.EVENT_TYPE_CREATED, pb.EVENT_TYPE_UPDATED, pb.EVENT_TYPE_DELETED


def model(name: str, kind: "pb.EventType.ValueType" = CREATED) -> pb.Event:
    return pb.Event(type=kind, model=pb.Model(name=f"models/{name}"))


def alias(name: str, number: int, kind: "pb.EventType.ValueType" = UPDATED, of: str = "m") -> pb.Event:
    return pb.Event(type=kind, alias=pb.Alias(name=f"models/{of}/aliases/{name}", version=number))


class ScriptedRegistry:
    """A registry whose lists and watches are what the test says."""

    def __init__(self) -> None:
        self.revisions = [10]
        self.models = ["m"]
        self.aliases = {"champion": 1}
        self.artifacts = {number: f"{number}" * 64 for number in range(1, 10)}
        self.problem: TidemillError | None = None
        self.fetched: list[int] = []
        self.watched: list[int] = []
        self.stream: asyncio.Queue[pb.WatchResponse | TidemillError] = asyncio.Queue()

    def send(self, revision: int, *events: pb.Event) -> None:
        self.stream.put_nowait(pb.WatchResponse(events=events, revision=revision))

    async def revision(self) -> int:
        if self.problem is not None:
            raise self.problem
        return self.revisions.pop(0) if len(self.revisions) > 1 else self.revisions[0]

    async def list_models(self) -> AsyncIterator[pb.Model]:
        for name in self.models:
            yield pb.Model(name=f"models/{name}")

    async def list_aliases(self) -> AsyncIterator[pb.Alias]:
        for name, number in self.aliases.items():
            yield pb.Alias(name=f"models/m/aliases/{name}", version=number)

    async def get_version(self, model: str, version: int) -> pb.ModelVersion:
        self.fetched.append(version)
        if version not in self.artifacts:
            raise NotFound(f"models/{model}/versions/{version} does not exist")
        name = f"models/{model}/versions/{version}"
        return pb.ModelVersion(name=name, version=version, format="onnx", artifact=self.artifacts[version])

    async def watch(self, from_revision: int) -> AsyncGenerator[pb.WatchResponse, None]:
        self.watched.append(from_revision)
        while True:
            item = await self.stream.get()
            if isinstance(item, TidemillError):
                raise item
            yield item


class World:
    def __init__(self) -> None:
        self.registry = ScriptedRegistry()
        self.clock = ManualClock()
        self.told: list[Desired] = []

    async def want(self, desired: Desired) -> None:
        self.told.append(desired)

    async def until_told(self, *champions: int | None) -> None:
        """Return when this is where `champion` was said to point, each time something was told."""
        await until(lambda: len(self.told) == len(champions), what=f"{champions}, not {self.told}")
        assert [told.aliases.get("m", {}).get("champion") for told in self.told] == list(champions)


@asynccontextmanager
async def following() -> AsyncIterator[World]:
    world = World()
    task = asyncio.create_task(Follower(world.registry, world.want, world.clock).run())
    try:
        yield world
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_tells_what_is_there_then_every_move() -> None:
    async with following() as world:
        await world.until_told(1)
        assert world.registry.watched == [11]
        world.registry.send(11, alias("champion", 2))
        world.registry.send(12)
        world.registry.send(13, alias("champion", 2, DELETED))
        await world.until_told(1, 2, None)
        assert [list(told.versions) for told in world.told] == [[("m", 1)], [("m", 2)], []]
        assert world.registry.fetched == [1, 2]


async def test_changes_that_do_not_matter_are_not_told() -> None:
    async with following() as world:
        await world.until_told(1)
        version = pb.Event(type=CREATED, model_version=pb.ModelVersion(name="models/m/versions/2", version=2))
        world.registry.send(11, version, model("m", UPDATED))
        world.registry.send(12, alias("champion", 2))
        await world.until_told(1, 2)


async def test_lists_from_different_moments_are_not_told() -> None:
    async with following() as world:
        world.registry.revisions = [10, 12]
        world.registry.aliases = {"champion": 3}
        await until(lambda: world.registry.watched)
        world.registry.send(10)
        world.registry.send(11, alias("champion", 2))
        assert world.told == []
        world.registry.send(12, alias("champion", 3))
        await world.until_told(3)


async def test_log_that_was_trimmed_is_listed_again() -> None:
    async with following() as world:
        await world.until_told(1)
        world.registry.revisions, world.registry.aliases = [90], {"champion": 7}
        world.registry.stream.put_nowait(OutOfRange("trimmed"))
        await world.clock.until_sleeping()
        world.clock.jump(10)
        await world.until_told(1, 7)
        assert world.registry.watched == [11, 91]


async def test_registry_that_is_away_says_nothing_about_what_is_served() -> None:
    async with following() as world:
        await world.until_told(1)
        world.registry.problem = Unavailable("away")
        world.registry.stream.put_nowait(Unavailable("broken off"))
        for _ in range(3):
            await world.clock.until_sleeping()
            world.clock.jump(10)
        await world.clock.until_sleeping()
        assert len(world.told) == 1
        world.registry.problem = None
        world.clock.jump(10)
        await world.until_told(1, 1)


async def test_version_that_is_gone_before_it_was_read() -> None:
    async with following() as world:
        await world.until_told(1)
        del world.registry.artifacts[2]
        world.registry.send(11, alias("champion", 2))
        world.registry.send(12, alias("champion", 3))
        await world.until_told(1, None, 3)


async def test_model_made_anew_in_one_batch_has_new_versions() -> None:
    async with following() as world:
        await world.until_told(1)
        world.registry.artifacts[1] = "f" * 64
        world.registry.send(14, model("m", DELETED), model("m"), alias("champion", 1, CREATED))
        await world.until_told(1, 1)
        assert world.told[1].versions["m", 1].artifact == "f" * 64
