"""Workers that are late in rounds: who waits, for how long, and who is left out."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry import trace

from tests.support.clock import ManualClock
from tests.support.wait import until
from tidemill import errors
from tidemill.parameters import convert
from tidemill.parameters.catalogue import check
from tidemill.parameters.consistency.base import Wish
from tidemill.parameters.definition import Definition, Durability, Tensor, Way
from tidemill.parameters.durability.none import Nothing
from tidemill.parameters.group import Group
from tidemill.parameters.groups import Groups, Limits, way_of
from tidemill.parameters.rounds import Contribution, Header, Mean, Outcome
from tidemill.parameters.store import Code, Store
from tidemill.parameters.stragglers import Roll, Stragglers
from tidemill.slots import Slots
from tidemill.tensors.blocks import Array, Block

WORKERS = 4
ELEMENTS = 12
BLOCKS = (Block(0, 0, 5), Block(1, 5, 7))
DROP = Stragglers(policy="drop", most=1)
PATIENT = Stragglers(policy="drop", most=2, after_seconds=5.0)
FAIL = Stragglers(policy="fail", after_seconds=5.0)


def definition(policy: Stragglers, shard: int = 0, **changes: Any) -> Definition:
    given: dict[str, Any] = {
        "name": "groups/g",
        "tensors": (Tensor("w", (ELEMENTS,)),),
        "blocks": BLOCKS,
        "optimizer": check("sgd", {"learning_rate": 1.0}),
        "workers": WORKERS,
        "shard": shard,
        "shards": 2,
        "stragglers": policy,
        **changes,
    }
    return convert.decode(convert.encode(Definition(**given)))


def gradient(worker: int, step: int) -> Array:
    return np.random.default_rng((worker, step)).standard_normal(ELEMENTS, dtype=np.float32)


def mean(ranks: list[int], step: int, samples: Callable[[int], int] = lambda rank: 1 + rank) -> Array:
    """Of these workers' gradients, to the bit."""
    part = way_of(definition(DROP)).part
    found = Mean([Contribution(0, samples(rank), gradient(rank, step)) for rank in ranks], part)
    out = np.empty(ELEMENTS, np.float32)
    for block in part.blocks:
        found.into(part.view(out, block.index), block.index)
    return out


class World:
    """A group on one shard, whose time is the test's."""

    def __init__(self, policy: Stragglers, shard: int = 0, **changes: Any) -> None:
        made = definition(policy, shard, **changes)
        self.clock = ManualClock()
        self.group = Group(
            made,
            way_of(made),
            Nothing(made, None),
            clock=self.clock,
            waiting=Slots(8, "pulls", "FULL"),
            tracer=trace.NoOpTracer(),
            closed=lambda _: None,
        )
        self.group.load([(block.index, bytes(4 * block.elements)) for block in BLOCKS])

    def push(self, worker: int, step: int = 0, attempt: int = 0) -> Outcome:
        return push(self.group, worker, step, attempt)

    def pull(self, version: int) -> Array:
        return pull(self.group, version)

    def later(self, seconds: float) -> None:
        """Let the time pass, and those who wait look at it."""
        self.clock.jump(seconds)
        self.group.wake()

    async def waiting(self, worker: int) -> None:
        await until(lambda: self.group.status().members[worker].waits_for, what="it waits")


def push(group: Group, worker: int, step: int = 0, attempt: int = 0) -> Outcome:
    header = Header(worker=worker, step=step, attempt=attempt, samples=1 + worker)
    given = gradient(worker, step)
    return group.push(header, [(block.index, given[block.slice].tobytes()) for block in BLOCKS])


def pull(group: Group, version: int, worker: int | None = None) -> Array:
    with group.reading(Wish(version=version, worker=worker), lambda: True) as reading:
        return np.concatenate([values.copy() for _, values, _ in reading.blocks])


def ranks(group: Group, version: int) -> tuple[int, ...]:
    with group.reading(Wish(version=version), lambda: True) as reading:
        return reading.ranks


class TestPolicies:
    @pytest.mark.parametrize(
        ("given", "field"),
        [
            ({"policy": "hope"}, "policy"),
            ({"most": 1}, "most"),
            ({"policy": "drop"}, "most"),
            ({"policy": "drop", "most": -1}, "most"),
            ({"policy": "fail", "after_seconds": 1.0, "most": 1}, "most"),
            ({"policy": "fail"}, "after_seconds"),
            ({"after_seconds": 1.0}, "after_seconds"),
            ({"policy": "drop", "most": 1, "after_seconds": -1.0}, "after_seconds"),
            ({"policy": "drop", "most": 1, "after_seconds": float("nan")}, "after_seconds"),
            ({"policy": "fail", "after_seconds": 1e9}, "after_seconds"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, given: dict[str, Any], field: str) -> None:
        with pytest.raises(errors.Invalid) as refused:
            Stragglers(**given)
        assert set(refused.value.violations) == {f"group.stragglers.{field}"}

    @pytest.mark.parametrize(
        ("policy", "changes", "field"),
        [
            (DROP, {"consistency": Way(mode="asp")}, "policy"),
            (FAIL, {"consistency": Way(mode="ssp", staleness=2)}, "policy"),
            (DROP, {"consistency": Way(arrival_order=True)}, "policy"),
            (DROP, {"durability": Durability(mode="replicated")}, "policy"),
            (FAIL, {"durability": Durability(mode="replicated")}, "policy"),
            (DROP, {"workers": 1}, "most"),
            (Stragglers(policy="drop", most=4), {}, "most"),
            (DROP, {"tensors": (Tensor("w", (3, 4)),), "blocks": (Block(0, 0, 12),), "sparse": (0,)}, "policy"),
        ],
    )
    def test_groups_that_cannot_have_them_are_refused(
        self, policy: Stragglers, changes: dict[str, Any], field: str
    ) -> None:
        with pytest.raises(errors.Invalid) as refused:
            definition(policy, **changes)
        assert set(refused.value.violations) == {f"group.stragglers.{field}"}

    def test_a_staleness_of_nothing_makes_rounds(self) -> None:
        assert definition(DROP, consistency=Way(mode="ssp")).stragglers == DROP
        assert definition(FAIL, consistency=Way(arrival_order=True)).stragglers == FAIL


class TestDropping:
    def test_a_round_closes_without_the_slowest_and_its_mean_is_that_of_the_others(self) -> None:
        world = World(DROP)
        for worker in (2, 0):
            assert world.push(worker).version == 0
        assert world.push(1) == Outcome(False, 1, ranks=(0, 1, 2))
        np.testing.assert_array_equal(world.pull(1), -mean([0, 1, 2], 0))
        assert ranks(world.group, 1) == (0, 1, 2)
        assert ranks(world.group, 0) == ()
        status = world.group.status()
        assert (status.version, status.samples, status.arrived) == (1, 1 + 2 + 3, ())

    def test_a_late_push_changes_nothing_and_is_no_error(self) -> None:
        world = World(DROP)
        for worker in range(3):
            world.push(worker)
        before = world.pull(1)
        assert world.push(3) == Outcome(False, 1, dropped=True, ranks=(0, 1, 2))
        assert world.push(3) == Outcome(False, 1, dropped=True, ranks=(0, 1, 2))
        assert world.push(1) == Outcome(True, 1, ranks=(0, 1, 2))
        np.testing.assert_array_equal(world.pull(1), before)
        status = world.group.status()
        assert (status.samples, status.duplicates, [one.dropped for one in status.members]) == (6, 1, [0, 0, 0, 2])

    def test_a_push_that_was_under_way_when_its_round_closed_is_late(self) -> None:
        world = World(DROP)
        begun, go = threading.Event(), threading.Event()

        def slowly() -> Any:
            for block in BLOCKS:
                begun.set()
                assert go.wait(30)
                yield block.index, gradient(3, 0)[block.slice].tobytes()

        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(world.group.push, Header(worker=3, step=0, attempt=0, samples=1), slowly())
            assert begun.wait(30)
            for worker in range(3):
                world.push(worker)
            go.set()
            assert late.result(30).dropped
        np.testing.assert_array_equal(world.pull(1), -mean([0, 1, 2], 0))

    def test_rank_0_is_never_left_out(self) -> None:
        world = World(DROP)
        for worker in (1, 2, 3):
            assert world.push(worker).version == 0
        assert "worker 0 must push" in world.group._way.waits_for(Wish(version=1))  # type: ignore[union-attr]
        world.push(0)
        assert ranks(world.group, 1) == (0, 1, 2, 3)

    def test_who_was_left_out_goes_on_in_a_later_round(self) -> None:
        world = World(DROP)
        for step in range(5):
            for worker in range(3):
                world.push(worker, step)
        assert world.push(3, 2).dropped, "long ago"
        assert world.push(1, 2).duplicate, "long ago as well"
        for worker in (3, 0, 2):
            world.push(worker, 5)
        assert ranks(world.group, 6) == (0, 2, 3)
        with pytest.raises(errors.FailedPrecondition, match="ahead"):
            world.push(1, 7)

    def test_a_dead_worker_stops_nobody_and_its_replacement_joins_at_the_version(self) -> None:
        world = World(DROP)
        for step in range(3):
            for worker in range(3):
                world.push(worker, step)
        world.push(3, 3, attempt=1)
        world.push(0, 3)
        assert world.push(1, 3).version == 4
        assert ranks(world.group, 4) == (0, 1, 3)
        with pytest.raises(errors.Stale):
            world.push(3, 3, attempt=0)

    async def test_the_missing_are_waited_for_as_long_as_was_asked(self) -> None:
        world = World(PATIENT)
        with ThreadPoolExecutor(1) as pool:
            world.push(0)
            world.later(3.0)
            world.push(1)
            waiting = pool.submit(pull, world.group, 1, 1)
            await world.waiting(1)
            assert "workers 2, 3 may push for 2 s more" in world.group.status().members[1].waits_for
            world.later(1.9)
            assert world.group.status().version == 0
            world.later(0.2)
            np.testing.assert_array_equal(waiting.result(30), -mean([0, 1], 0))
        assert world.push(2).dropped

    def test_who_comes_when_the_time_is_over_closes_the_round(self) -> None:
        world = World(PATIENT)
        for worker in (0, 1):
            world.push(worker)
        world.later(6.0)
        assert world.push(3).version == 1
        assert ranks(world.group, 1) == (0, 1, 3)

    def test_nobody_is_waited_for_when_all_are_there(self) -> None:
        world = World(PATIENT)
        for worker in range(4):
            world.push(worker)
        assert ranks(world.group, 1) == (0, 1, 2, 3)

    def test_nobody_keeps_looking_at_the_time_while_a_round_closes(self) -> None:
        world = World(DROP)
        closing, go, looked = threading.Event(), threading.Event(), 0

        def step(*_: Any, **__: Any) -> None:
            closing.set()
            assert go.wait(30)

        def now() -> float:
            nonlocal looked
            looked += 1
            return 0.0

        world.group._way.step = step  # type: ignore[union-attr, method-assign]
        with ThreadPoolExecutor(2) as pool:
            for worker in (1, 2):
                world.push(worker)
            last = pool.submit(world.push, 0)
            assert closing.wait(30)
            world.group._way.time = now  # type: ignore[union-attr]
            waiting = pool.submit(pull, world.group, 1, 1)
            while not world.group.status().members[1].waits_for:
                threading.Event().wait(0.001)
            before = looked
            threading.Event().wait(0.05)
            assert looked - before <= 2
            go.set()
            assert (last.result(30).version, waiting.result(30).size) == (1, ELEMENTS)

    def test_versions_are_not_shared_where_old_ones_may_still_be_read(self) -> None:
        world = World(DROP)
        world.group.attach(1, 0)
        with world.group.reading(Wish(version=0), lambda: True) as reading:
            assert reading.memory is None


class TestOtherShards:
    def test_they_wait_for_the_verdict_and_take_those_of_it(self) -> None:
        world = World(DROP, shard=1)
        for worker in range(4):
            assert world.push(worker).version == 0, "all are there, and it is not for this shard to close"
        assert world.group.close_round(0, [0, 1, 3]) == 1
        np.testing.assert_array_equal(world.pull(1), -mean([0, 1, 3], 0))
        assert world.push(2).dropped
        assert world.group.status().samples == 1 + 2 + 4

    def test_they_wait_for_all_of_the_verdict(self) -> None:
        world = World(DROP, shard=1)
        world.push(0)
        world.push(1)
        assert world.group.close_round(0, [0, 1, 3]) == 0
        assert "worker 3 must push" in world.group._way.waits_for(Wish(version=1))  # type: ignore[union-attr]
        assert world.push(2).version == 0, "it is not of it"
        assert world.push(3).version == 1
        np.testing.assert_array_equal(world.pull(1), -mean([0, 1, 3], 0))

    def test_the_same_verdict_again_changes_nothing(self) -> None:
        world = World(DROP, shard=1)
        for worker in range(4):
            world.push(worker)
        for _ in range(3):
            assert world.group.close_round(0, [0, 1, 2]) == 1
        world.push(0, 1)
        assert world.group.close_round(1, [0, 1, 2]) == 1
        assert world.group.close_round(1, [0, 1, 2]) == 1
        assert world.group.close_round(0, [0, 1, 2]) == 1

    def test_contradictions_are_refused(self) -> None:
        world = World(DROP, shard=1)
        for worker in range(4):
            world.push(worker)
        world.group.close_round(0, [0, 1, 2])
        world.group.close_round(1, [0, 1, 3])
        for step, given in ((0, [0, 1, 3]), (1, [0, 1, 2]), (1, [0, 1, 2, 3])):
            with pytest.raises(errors.FailedPrecondition) as refused:
                world.group.close_round(step, given)
            assert refused.value.reason == "CONTRADICTION"
        assert world.group.status().version == 1

    @pytest.mark.parametrize("given", [[], [0, 1], [1, 2, 3], [0, 1, 1, 2], [0, 2, 1], [0, 1, 2, 4], [-1, 0, 1, 2]])
    def test_ranks_that_can_make_no_round_are_refused(self, given: list[int]) -> None:
        with pytest.raises(errors.Invalid, match="ranks"):
            World(DROP, shard=1).group.close_round(0, given)

    def test_steps_to_come_and_shards_that_decide_are_refused(self) -> None:
        reasons = []
        for world, step in (
            (World(DROP, shard=1), 1),
            (World(DROP, shard=0), 0),
            (World(FAIL, shard=1), 0),
            (World(Stragglers(), shard=1), 0),
            (World(DROP, shard=1, consistency=Way(mode="ssp")), 1),
        ):
            with pytest.raises(errors.FailedPrecondition) as refused:
                world.group.close_round(step, [0, 1, 2])
            reasons.append(refused.value.reason)
        assert reasons == ["STEP_AHEAD", "NO_VERDICT", "NO_VERDICT", "NO_VERDICT", "STEP_AHEAD"]


class TestFailing:
    async def test_the_group_ends_and_says_who_was_missing(self) -> None:
        world = World(FAIL)
        with ThreadPoolExecutor(2) as pool:
            for worker in (1, 2):
                world.push(worker)
            waiting = [pool.submit(pull, world.group, 1, worker) for worker in (1, 2)]
            for worker in (1, 2):
                await world.waiting(worker)
            world.later(4.9)
            assert not any(one.done() for one in waiting)
            world.later(0.2)
            attempts: list[Callable[[], Any]] = [partial(one.result, 30) for one in waiting]
            attempts.append(lambda: world.push(0))
            for attempt in attempts:
                with pytest.raises(errors.DeadlineExceeded) as failed:
                    attempt()
                assert failed.value.reason == "STRAGGLERS"
                assert failed.value.metadata == {"step": "0", "ranks": "0, 3"}
                assert "workers 0, 3 did not push for step 0 within 5 s" in failed.value.message
        world.group.delete()

    async def test_it_does_so_by_itself_when_only_one_worker_is_left(self) -> None:
        made = definition(Stragglers(policy="fail", after_seconds=0.05), shards=1)
        limits = Limits(bytes=1 << 30, groups=1, waiting=8, optimizer_threads=1)
        groups = Groups(limits, clock=Ticking(), tracer=trace.NoOpTracer(), closed=lambda _: None)
        group = groups.create(made)
        group.load([(block.index, bytes(4 * block.elements)) for block in BLOCKS])
        push(group, 2)
        with pytest.raises(errors.DeadlineExceeded, match="workers 0, 1, 3 did not push"):
            pull(group, 1)
        groups.stop()

    def test_each_round_has_its_own_time(self) -> None:
        world = World(FAIL)
        for step in range(3):
            for worker in range(4):
                world.push(worker, step)
                world.later(1.2)
        assert world.group.status().version == 3

    def test_nobody_fails_while_no_round_is_open(self) -> None:
        world = World(FAIL)
        world.later(100.0)
        for worker in range(4):
            world.push(worker)
        assert world.pull(1).any()


class Ticking(ManualClock):
    """Half of a twentieth of a second passes whenever somebody looks."""

    def monotonic(self) -> float:
        self._elapsed += 0.025
        return self._elapsed


def test_the_default_is_to_wait_for_all() -> None:
    world = World(Stragglers())
    for worker in range(3):
        world.push(worker)
    world.later(1e6)
    assert world.group.status().version == 0
    assert world.push(3).version == 1
    assert ranks(world.group, 1) == (), "there is nothing to tell"


class Shard:
    """A shard with a log, which can end as by SIGKILL."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._start()

    def _start(self) -> None:
        self._store = Store(self._folder, Code(encode=convert.encode, decode=convert.decode), 1 << 20)
        self._store.open()
        limits = Limits(bytes=1 << 30, groups=4, waiting=8, optimizer_threads=1)
        self._clock = ManualClock()
        self._groups = Groups(
            limits, clock=self._clock, tracer=trace.NoOpTracer(), closed=lambda _: None, store=self._store
        )
        self._groups.recover()

    def create(self, made: Definition) -> None:
        self._groups.create(made).load([(block.index, bytes(4 * block.elements)) for block in BLOCKS])

    def kill(self) -> None:
        self.end()
        self._start()

    def end(self) -> None:
        self._store.close()
        self._groups.stop()

    @property
    def group(self) -> Group:
        return self._groups.get("groups/g")


class TestWithALog:
    @pytest.mark.parametrize("shard", [0, 1])
    async def test_who_has_made_a_round_is_known_after_a_restart(self, tmp_path: Path, shard: int) -> None:
        held = Shard(tmp_path / "data")
        held.create(definition(DROP, shard, durability=Durability(mode="wal")))
        with ThreadPoolExecutor(4) as pool:
            for step, made in enumerate(([0, 1, 2], [0, 1, 3], [0, 2, 3])):
                pushes = [pool.submit(push, held.group, worker, step) for worker in made]
                if shard:
                    await until(lambda made=made: held.group.status().arrived == tuple(made), what="all are there")  # type: ignore[misc]
                    held.group.close_round(step, made)
                for one in pushes:
                    assert one.result(30) == Outcome(False, step + 1, ranks=tuple(made))
        before = held.group.status()
        values = pull(held.group, 3)
        held.kill()
        after = held.group.status()
        assert (after.version, after.samples) == (before.version, before.samples) == (3, 6 + 7 + 8)
        np.testing.assert_array_equal(pull(held.group, 3), values)
        assert ranks(held.group, 3) == (0, 2, 3)
        assert push(held.group, 1, 2).dropped
        assert push(held.group, 3, 2).duplicate
        if shard:
            assert held.group.close_round(2, [0, 2, 3]) == 3
            with pytest.raises(errors.FailedPrecondition, match="not of workers 0, 1, 2"):
                held.group.close_round(2, [0, 1, 2])
        held.end()

    async def test_a_push_that_a_verdict_leaves_out_is_told_so(self, tmp_path: Path) -> None:
        held = Shard(tmp_path / "data")
        held.create(definition(DROP, 1, durability=Durability(mode="wal")))
        with ThreadPoolExecutor(4) as pool:
            pushes = [pool.submit(push, held.group, worker) for worker in range(4)]
            await until(lambda: held.group.status().arrived == (0, 1, 2, 3), what="all are there")
            held.group.close_round(0, [0, 1, 2])
            outcomes = [one.result(30) for one in pushes]
        assert [(one.dropped, one.duplicate) for one in outcomes] == [(False, False)] * 3 + [(True, False)]
        held.end()


def test_a_verdict_is_about_one_step() -> None:
    roll = Roll(DROP, 4, decides=False)
    assert roll.told(0, 0, [0, 1, 2])
    roll.closed(0, [0, 1, 2])
    assert roll.chosen({0, 1, 2, 3}, 0.0) == ()
    assert roll.waits_for({0}, 0.0) == "shard 0 must close its round"


def test_what_the_deciding_shard_waits_for() -> None:
    roll = Roll(Stragglers(policy="drop", most=2), 5, decides=True)
    assert roll.waits_for(set(), 0.0) == "worker 0 and 2 of workers 1, 2, 3, 4 must push"
    assert roll.waits_for({0, 3}, 0.0) == "1 of workers 1, 2, 4 must push"
    assert roll.waits_for({1, 2, 3}, 0.0) == "worker 0 must push"
