"""Versions come and go as aliases move, and no request finds nothing in between."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.support.clock import ManualClock
from tests.support.wait import until
from tests.unit.inference.fakes import FakeLoads, desired, version
from tidemill.errors import DataLoss, Invalid, NotFound, TidemillError, Unavailable
from tidemill.inference.desired import Desired
from tidemill.inference.reconciler import LONGEST_PAUSE, Reconciler
from tidemill.inference.repository import Repository


class World:
    def __init__(self) -> None:
        self.loads = FakeLoads()
        self.clock = ManualClock()
        self.repository = Repository("champion")
        self.settled: list[Desired] = []
        self.reconciler = Reconciler(self.loads, self.repository, self.clock, settled=self._settled, concurrency=2)

    async def _settled(self, what: Desired) -> None:
        self.settled.append(what)

    def serves(self, asked: str = "") -> int:
        """The number that serves such a request now."""
        with self.repository.acquire("m", asked) as loaded:
            return loaded.version.number

    def states(self) -> dict[str, str]:
        return {entry.version: entry.state for entry in self.repository.index(only_ready=False)}

    async def until_states(self, **states: str) -> None:
        wanted = {name.removeprefix("v"): state for name, state in states.items()}
        await until(lambda: self.states() == wanted, what=f"{wanted}, not {self.states()}")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    yield made
    await made.reconciler.close()


async def test_old_version_serves_until_the_new_one_is_ready(world: World) -> None:
    world.reconciler.want(desired({"champion": 1}))
    await world.until_states(v1="READY")
    let = world.loads.hold(2)
    world.reconciler.want(desired({"champion": 2}))
    await until(lambda: world.loads.attempts == [1, 2])
    assert world.states() == {"1": "READY", "2": "LOADING"}
    assert (world.serves(), world.serves("champion"), world.serves("1")) == (1, 1, 1)
    let.set()
    await world.until_states(v2="READY")
    assert world.serves() == 2
    assert world.loads.unloaded == [1]


async def test_request_in_work_finishes_on_the_old_version(world: World) -> None:
    world.reconciler.want(desired({"champion": 1}))
    await world.until_states(v1="READY")
    with world.repository.acquire("m", "") as used:
        world.reconciler.want(desired({"champion": 2}))
        await world.until_states(v1="UNLOADING", v2="READY")
        assert world.serves() == 2
        with pytest.raises(Unavailable):
            world.serves("1")
        assert world.loads.unloaded == []
        assert used.version.number == 1
    await world.until_states(v2="READY")
    assert world.loads.unloaded == [1]


async def test_broken_version_leaves_the_old_one_and_is_not_tried_again(world: World) -> None:
    world.reconciler.want(desired({"champion": 1}))
    await world.until_states(v1="READY")
    world.loads.results[2] = [Invalid("the file is not an ONNX model")]
    world.reconciler.want(desired({"champion": 2}))
    await world.until_states(v1="READY", v2="UNAVAILABLE")
    assert world.serves() == 1
    reasons = {entry.version: entry.reason for entry in world.repository.index(only_ready=False)}
    assert reasons["2"] == "the file is not an ONNX model"
    await world.clock.advance(10 * LONGEST_PAUSE)
    assert world.loads.attempts == [1, 2]
    world.reconciler.want(desired({"champion": 1}))
    await world.until_states(v1="READY")
    world.reconciler.want(desired({"champion": 2}))
    await world.until_states(v2="READY")


@pytest.mark.parametrize("problem", [Unavailable("away"), NotFound("not yet"), OSError("disk full")])
async def test_failure_that_may_pass_is_tried_again(world: World, problem: Exception) -> None:
    world.loads.results[1] = [problem] * 3
    world.reconciler.want(desired({"champion": 1}))
    for attempts in (1, 2, 3):
        await world.until_states(v1="UNAVAILABLE")
        await until(lambda: world.clock.sleeping == 1)
        assert len(world.loads.attempts) == attempts
        world.clock.jump(LONGEST_PAUSE)
        await until(lambda n=attempts: len(world.loads.attempts) == n + 1)  # type: ignore[misc]
    await world.until_states(v1="READY")


@pytest.mark.parametrize("problem", [DataLoss("flipped"), ZeroDivisionError("a bug")])
async def test_other_models_do_not_suffer(world: World, problem: Exception) -> None:
    world.loads.results[1] = [problem]
    both = Desired.of({"m": {"champion": 1}, "other": {"a": 7}}, [version(1), version(7, "other")])
    world.reconciler.want(both)
    await world.until_states(v1="UNAVAILABLE", v7="READY")
    with pytest.raises(Unavailable):
        world.serves()


async def test_one_version_under_two_aliases_loads_once_and_stays_for_the_second(world: World) -> None:
    world.reconciler.want(desired({"champion": 1, "canary": 1}))
    await world.until_states(v1="READY")
    world.reconciler.want(desired({"champion": 2, "canary": 1}))
    await world.until_states(v1="READY", v2="READY")
    assert (world.serves("champion"), world.serves("canary")) == (2, 1)
    world.reconciler.want(desired({"champion": 2}))
    await world.until_states(v2="READY")
    with pytest.raises(TidemillError):
        world.serves("canary")
    assert world.loads.attempts == [1, 2]


async def test_alias_that_moves_back_gives_the_load_up(world: World) -> None:
    world.reconciler.want(desired({"champion": 1}))
    await world.until_states(v1="READY")
    world.loads.hold(2)
    world.reconciler.want(desired({"champion": 2}))
    await until(lambda: world.loads.attempts == [1, 2])
    world.reconciler.want(desired({"champion": 1}))
    assert world.states() == {"1": "READY"}
    assert world.serves() == 1


async def test_alias_that_moves_on_while_loading(world: World) -> None:
    world.reconciler.want(desired({"champion": 1}))
    await world.until_states(v1="READY")
    world.loads.hold(2)
    world.reconciler.want(desired({"champion": 2}))
    await until(lambda: 2 in world.loads.attempts)
    world.reconciler.want(desired({"champion": 3}))
    await world.until_states(v3="READY")
    assert world.loads.unloaded == [1]


async def test_deleted_model_goes(world: World) -> None:
    world.reconciler.want(desired({"champion": 1}))
    await world.until_states(v1="READY")
    world.reconciler.want(Desired())
    with pytest.raises(TidemillError):
        world.serves()
    await world.until_states()
    assert world.loads.unloaded == [1]
    with pytest.raises(NotFound):
        world.serves("champion")


async def test_model_made_anew_under_the_same_number_is_loaded_anew(world: World) -> None:
    world.reconciler.want(desired({"champion": 1}, artifact="a"))
    await world.until_states(v1="READY")
    world.reconciler.want(desired({"champion": 1}, artifact="b"))
    await until(lambda: world.loads.unloaded == [1])
    await world.until_states(v1="READY")
    with world.repository.acquire("m", "") as loaded:
        assert loaded.version.artifact == "b" * 64


async def test_same_again_changes_nothing(world: World) -> None:
    for _ in range(3):
        world.reconciler.want(desired({"champion": 1}))
        await world.until_states(v1="READY")
    assert (world.loads.attempts, world.loads.unloaded) == ([1], [])


async def test_no_more_than_so_many_load_at_a_time(world: World) -> None:
    lets = [world.loads.hold(number) for number in (1, 2, 3)]
    world.reconciler.want(desired({"a": 1, "b": 2, "c": 3}))
    await until(lambda: len(world.loads.attempts) == 2)
    await asyncio.sleep(0)
    assert len(world.loads.attempts) == 2
    for let in lets:
        let.set()
    await world.until_states(v1="READY", v2="READY", v3="READY")


async def test_says_when_all_is_settled(world: World) -> None:
    let = world.loads.hold(1)
    world.reconciler.want(desired({"champion": 1}))
    await until(lambda: world.loads.attempts == [1])
    assert world.settled == []
    let.set()
    await until(lambda: len(world.settled) == 1)
    assert set(world.settled[0].versions) == {("m", 1)}


def kept(*numbers: int, artifact: str = "a", model: str = "m") -> Desired:
    """What a repository wants of one model: versions that stand in for each other."""
    versions = {(model, number): version(number, model, artifact) for number in numbers}
    return Desired({model: {}}, versions, keeps=True)


async def test_does_not_unload_when_other_in_error(world: World) -> None:
    world.reconciler.want(kept(1))
    await world.until_states(v1="READY")
    world.loads.results[2] = [Invalid("broken")]
    world.reconciler.want(kept(2))
    await world.until_states(v1="READY", v2="UNAVAILABLE")
    assert world.serves() == 1
    world.reconciler.want(kept(3))
    await world.until_states(v1="UNAVAILABLE", v3="READY")
    assert (world.serves(), world.loads.unloaded) == (3, [1])


async def test_one_of_several_new_versions_is_enough_to_unload_the_old(world: World) -> None:
    world.reconciler.want(kept(1))
    await world.until_states(v1="READY")
    let = world.loads.hold(2)
    world.loads.results[3] = [Invalid("broken")]
    world.reconciler.want(kept(2, 3))
    await world.until_states(v1="READY", v2="LOADING", v3="UNAVAILABLE")
    let.set()
    await world.until_states(v1="UNAVAILABLE", v2="READY", v3="UNAVAILABLE")


async def test_other_content_of_a_number_stands_in_until_the_new_one_is_ready(world: World) -> None:
    world.reconciler.want(kept(1))
    await world.until_states(v1="READY")
    let = world.loads.hold(1)
    world.reconciler.want(kept(1, artifact="b"))
    await until(lambda: world.loads.attempts == [1, 1])
    assert world.states() == {"1": "READY"}
    assert artifact(world) == "a" * 64
    let.set()
    await until(lambda: world.loads.unloaded == [1])
    assert artifact(world) == "b" * 64


async def test_failed_content_of_a_number_leaves_the_one_before(world: World) -> None:
    world.reconciler.want(kept(1))
    await world.until_states(v1="READY")
    world.loads.results[1] = [Invalid("broken")]
    world.reconciler.want(kept(1, artifact="b"))
    done = await world.reconciler.until_loaded([("m", 1)])
    assert done["m", 1].reason == "broken"
    assert world.states() == {"1": "READY"}
    assert artifact(world) == "a" * 64
    world.reconciler.want(kept(1))  # it is put back: nothing is to be loaded
    assert (world.loads.attempts, world.loads.unloaded) == ([1, 1], [])
    assert artifact(world) == "a" * 64


async def test_content_that_changes_while_it_loads(world: World) -> None:
    world.reconciler.want(kept(1))
    await world.until_states(v1="READY")
    let = world.loads.hold(1)
    for content in "bcd":
        world.reconciler.want(kept(1, artifact=content))
    assert artifact(world) == "a" * 64
    let.set()
    await until(lambda: world.loads.unloaded == [1])
    assert artifact(world) == "d" * 64


async def test_unaspire_then_immediately_reaspire(world: World) -> None:
    world.reconciler.want(kept(1))
    await world.until_states(v1="READY")
    with world.repository.acquire("m", ""):
        world.reconciler.want(Desired({"m": {}}, {}, keeps=True))
        assert world.states() == {"1": "UNLOADING"}
        world.reconciler.want(kept(1))
        await until(lambda: world.states() == {"1": "READY"})
    await until(lambda: world.loads.unloaded == [1])
    assert world.serves() == 1


async def test_unloaded_versions_are_remembered_while_the_model_is_there(world: World) -> None:
    world.reconciler.want(kept(1))
    await world.until_states(v1="READY")
    world.reconciler.want(Desired({"m": {}}, {}, keeps=True))
    await world.until_states(v1="UNAVAILABLE")
    assert [entry.reason for entry in world.repository.index(only_ready=False)] == ["unloaded"]
    world.reconciler.want(Desired(keeps=True))
    assert world.states() == {}


async def test_a_failed_version_is_tried_again_when_asked(world: World) -> None:
    world.loads.results[1] = [Invalid("broken")]
    world.reconciler.want(kept(1))
    await world.until_states(v1="UNAVAILABLE")
    world.reconciler.want(kept(1))
    assert world.loads.attempts == [1]
    world.reconciler.want(kept(1), again=[("m", 1)])
    await world.until_states(v1="READY")


def artifact(world: World) -> str:
    """The content that serves."""
    with world.repository.acquire("m", "") as loaded:
        return loaded.version.artifact
