"""What a shard counts a group's memory as, and that it is free as soon as the group is deleted."""

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from opentelemetry import trace

from tests.support.clock import ManualClock
from tidemill import errors
from tidemill.parameters import catalogue
from tidemill.parameters.consistency.base import Wish
from tidemill.parameters.consistency.bsp import Bsp
from tidemill.parameters.definition import Definition, Tensor
from tidemill.parameters.group import Group
from tidemill.parameters.groups import Groups, Limits, needed
from tidemill.parameters.rounds import Header
from tidemill.tensors.blocks import Block

ELEMENTS = 1000
DATA = np.ones(ELEMENTS, np.float32).tobytes()


@pytest.fixture
def uncollected() -> Iterator[None]:
    """What only the collector of cycles would free stays."""
    # Importing torch leaves cycles that hold the frames it is imported from: those of the first group, once a process.
    import torch  # noqa: F401

    gc.collect()
    gc.disable()
    yield
    gc.enable()


def shard(size: int = 1 << 20) -> Groups:
    limits = Limits(bytes=size, groups=8, waiting=8, optimizer_threads=1)
    return Groups(limits, clock=ManualClock(), tracer=trace.NoOpTracer(), closed=lambda _: None)


def definition(optimizer: str = "adam", workers: int = 1, name: str = "groups/g") -> Definition:
    return Definition(
        name=name,
        tensors=(Tensor("w", (ELEMENTS,)),),
        blocks=(Block(0, 0, ELEMENTS),),
        optimizer=catalogue.check(optimizer, {}),
        workers=workers,
        shard=0,
        shards=1,
    )


def push(group: Group, worker: int, step: int) -> None:
    group.push(Header(worker=worker, step=step, attempt=0, samples=1), [(0, DATA)])


def parts(group: Group) -> list[weakref.ref[Any]]:
    """What a group's memory hangs on: the optimizer, its state, the values of the last two versions."""
    way = group._way
    assert isinstance(way, Bsp)
    assert way._snapshots is not None
    first = way._snapshots.take(0)
    held: list[Any] = [way.rule._optimizer, way._snapshots.latest.values, first.values]
    way._snapshots.release(first)
    held += [tensor for tensors in way.rule._optimizer.tensors.values() for tensor in tensors]
    return [weakref.ref(one) for one in held]


def outcome(group: Group, version: int) -> str:
    """The reason why the version cannot be read; the error, which holds the callers, is gone afterwards."""
    try:
        with group.reading(Wish(version=version), lambda: True):
            return ""
    except errors.TidemillError as error:
        return type(error).__name__


@pytest.mark.usefixtures("uncollected")
def test_a_deleted_group_is_freed_at_once() -> None:
    groups = shard()
    group = groups.create(definition(workers=2))
    group.load([(0, DATA)])
    for worker in range(2):
        push(group, worker, 0)
    push(group, 0, 1)
    watched: list[weakref.ref[Any]] = [weakref.ref(group), *parts(group)]
    groups.delete(group.name)
    assert outcome(group, 0) == "NotFound"
    del group
    assert [ref() for ref in watched] == [None] * len(watched)


@pytest.mark.usefixtures("uncollected")
def test_a_deleted_group_for_which_a_pull_waited_is_freed_at_once() -> None:
    groups = shard()
    group = groups.create(definition())
    group.load([(0, DATA)])
    push(group, 0, 0)
    watched: list[weakref.ref[Any]] = [weakref.ref(group), *parts(group)]
    asked = threading.Event()

    def wait() -> str:
        def alive() -> bool:
            asked.set()
            return True

        try:
            with groups.get("groups/g").reading(Wish(version=2), alive):
                return ""
        except errors.NotFound:
            return "NotFound"

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wait)
        assert asked.wait(30)
        groups.delete(group.name)
        assert waiting.result(30) == "NotFound"
    del group
    assert [ref() for ref in watched] == [None] * len(watched)


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("end", ["delete", "stop"])
def test_who_still_holds_an_ended_group_does_not_hold_its_memory(end: str) -> None:
    group = shard().create(definition())
    group.load([(0, DATA)])
    push(group, 0, 0)
    watched = parts(group)
    getattr(group, end)()
    assert [ref() for ref in watched] == [None] * len(watched)


@pytest.mark.usefixtures("uncollected")
def test_a_group_whose_optimizer_failed_is_freed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = shard()
    group = groups.create(definition())
    group.load([(0, DATA)])
    watched: list[weakref.ref[Any]] = [weakref.ref(group), *parts(group)]

    def fail(*_: object) -> None:
        raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr("tidemill.parameters.optimizers.adam.Adam.update", fail)
        with pytest.raises(MemoryError):
            push(group, 0, 0)
    assert outcome(group, 0) == "Internal"
    groups.delete(group.name)
    assert outcome(group, 0) == "NotFound"
    del group
    assert [ref() for ref in watched] == [None] * len(watched)


@pytest.mark.usefixtures("uncollected")
def test_a_copy_of_the_state_outlives_its_group() -> None:
    group = shard().create(definition())
    group.load([(0, DATA)])
    assert group._way is not None
    watched = weakref.ref(group._way.rule)
    with group.state() as saved:
        group.delete()
        assert watched() is None
        assert saved.position.version == 0
        assert saved.state["exp_avg"][0] is not None


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 0), ("momentum", 1), ("adam", 2)])
@pytest.mark.parametrize("workers", [1, 5])
def test_versions_states_and_gradients_are_counted(optimizer: str, states: int, workers: int) -> None:
    assert needed(definition(optimizer, workers)) == 4 * ELEMENTS * (3 + states + workers)


def test_a_group_that_does_not_fit_is_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    small = 4 * ELEMENTS * (3 + 2 + 1)
    groups = shard(2 * small)
    groups.create(definition(name="groups/a"))

    def made(*_: object) -> None:
        raise AssertionError("an optimizer was made")

    with monkeypatch.context() as patch:
        patch.setattr(catalogue, "make", made)
        with pytest.raises(errors.Exhausted) as refused:
            groups.create(definition(workers=2, name="groups/b"))
    assert refused.value.reason == "TOO_MANY_PARAMETERS"
    asked = small + 4 * ELEMENTS
    assert refused.value.metadata == {"asked": str(asked), "taken": str(small), "limit": str(2 * small)}
    for number in (asked, small, 2 * small):
        assert str(number) in str(refused.value)
    groups.create(definition(name="groups/b"))
    groups.delete("groups/a")
    groups.create(definition(name="groups/c"))
