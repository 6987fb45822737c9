"""A group without any transport: what happens while a round closes, and when the optimizer fails."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from opentelemetry import trace

from tests.support.clock import ManualClock
from tidemill import errors
from tidemill.parameters.catalogue import Choice
from tidemill.parameters.consistency.base import Wish
from tidemill.parameters.consistency.bsp import Bsp
from tidemill.parameters.definition import Definition, Tensor
from tidemill.parameters.durability.none import Nothing
from tidemill.parameters.group import Group
from tidemill.parameters.optimizers.base import Optimizer
from tidemill.parameters.part import Part
from tidemill.parameters.rounds import Header
from tidemill.parameters.rule import Rule
from tidemill.parameters.segments import Segments
from tidemill.schedules.constant import Constant
from tidemill.slots import Slots
from tidemill.tensors.blocks import Array, Block

ONES = np.ones(4, np.float32).tobytes()


class Scripted(Optimizer):
    """Adds the gradient, after doing what the test says."""

    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before
        super().__init__(SimpleNamespace(learning_rate=1.0), ())

    def start(self, sizes: Sequence[int]) -> None:
        """There is no state."""

    def update(self, *_: Any) -> None:
        """Not used: `step_block` needs no tensors here."""

    def step_block(self, at: int, parameters: Array, gradients: Any, learning_rate: float | None = None) -> None:
        """Add the gradient."""
        self._before()
        parameters += gradients


def rule(before: Callable[[], None]) -> Rule:
    """A rule that does nothing but what the optimizer does."""
    return Rule(Scripted(before), Constant(Constant.Config()), Segments([4], [Block(0, 0, 4)]))


def group(workers: int, before: Callable[[], None] = lambda: None) -> Group:
    """A group of one block of four elements, all 0."""
    definition = Definition(
        name="groups/g",
        tensors=(Tensor("w", (4,)),),
        blocks=(Block(0, 0, 4),),
        optimizer=Choice("scripted", {}),
        workers=workers,
        shard=0,
        shards=1,
    )
    made = Group(
        definition,
        Bsp(definition, Part(definition.blocks), rule(before)),
        Nothing(definition, None),
        clock=ManualClock(),
        waiting=Slots(8, "pulls", "FULL"),
        tracer=trace.NoOpTracer(),
        closed=lambda _: None,
    )
    made.load([(0, bytes(16))])
    return made


def push(to: Group, worker: int, step: int, attempt: int = 0) -> tuple[bool, int]:
    """Whether it was a repetition, and the version afterwards."""
    header = Header(worker=worker, step=step, attempt=attempt, samples=1)
    outcome = to.push(header, [(0, ONES)])
    return outcome.duplicate, outcome.version


def read(of: Group, version: int) -> list[float]:
    """The values at a version."""
    with of.reading(Wish(version=version), lambda: True) as reading:
        return [float(value) for _, values, _ in reading.blocks for value in values]


def test_while_a_round_closes_the_versions_before_are_read_and_its_pushes_are_repetitions() -> None:
    closing, go = threading.Event(), threading.Event()

    def slowly() -> None:
        closing.set()
        assert go.wait(30)

    slow = group(2, slowly)
    with ThreadPoolExecutor(4) as pool:
        push(slow, 0, 0)
        last = pool.submit(push, slow, 1, 0)
        assert closing.wait(30)
        assert read(slow, 0) == [0, 0, 0, 0]
        assert push(slow, 0, 0) == (True, 0)
        assert push(slow, 1, 0) == (True, 0)
        assert slow.status().arrived == (0, 1)
        later = pool.submit(push, slow, 0, 0, 1)  # its predecessor's gradient is being applied: it comes too late
        waiting = pool.submit(read, slow, 1)
        with pytest.raises(errors.FailedPrecondition):
            push(slow, 1, 1)
        go.set()
        assert last.result(30) == (False, 1)
        assert later.result(30) == (True, 1)
        assert waiting.result(30) == [1, 1, 1, 1]
    assert read(slow, 0) == [0, 0, 0, 0]
    assert slow.status().duplicates == 4
    with pytest.raises(errors.Stale):
        push(slow, 0, 1, 0)


def test_a_failing_optimizer_ends_the_group_loudly() -> None:
    def fail() -> None:
        raise MemoryError("no more")

    failing = group(2, fail)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(read, failing, 1)
        push(failing, 0, 0)
        with pytest.raises(MemoryError):
            push(failing, 1, 0)
        for attempt in (lambda: waiting.result(30), lambda: read(failing, 0), lambda: push(failing, 0, 0)):
            with pytest.raises(errors.Internal) as failed:
                attempt()
            assert failed.value.reason == "ROUND_FAILED"


def test_deleting_while_a_round_closes_ends_its_last_push() -> None:
    def delete() -> None:
        doomed.delete()

    doomed = group(1, delete)
    with pytest.raises(errors.NotFound):
        push(doomed, 0, 0)


def test_the_state_is_read_between_rounds_only() -> None:
    closing, go = threading.Event(), threading.Event()

    def slowly() -> None:
        closing.set()
        assert go.wait(30)

    slow = group(1, slowly)

    def version() -> int:
        with slow.state() as found:
            return found.position.version

    assert version() == 0
    with ThreadPoolExecutor(2) as pool:
        last = pool.submit(push, slow, 0, 0)
        assert closing.wait(30)
        state = pool.submit(version)
        go.set()
        assert last.result(30) == (False, 1)
        assert state.result(30) == 1
        with slow.state(), pytest.raises(errors.Exhausted), slow.state():
            pass


def test_nobody_waits_for_a_call_that_is_gone() -> None:
    idle = group(1)
    gone = threading.Event()
    with ThreadPoolExecutor(1) as pool:

        def wait() -> None:
            with idle.reading(Wish(version=1), lambda: not gone.is_set()):
                raise AssertionError("there is no version 1")

        waiting = pool.submit(wait)
        idle.wake()
        assert not waiting.done()
        gone.set()
        idle.wake()
        with pytest.raises(errors.Cancelled):
            waiting.result(30)
