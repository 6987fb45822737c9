"""Dynamic batching under many callers: every answer is checked."""

import random
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing

import numpy as np
import pytest

from tests.support.batching import POISON, Marking, call, loaded, problem
from tidemill.errors import Internal
from tidemill.inference.calls import Array, Call
from tidemill.inference.configuration import DynamicBatching
from tidemill.inference.loaded import Loaded

THREADS = 64


def reply_problem(one: Call, version: Loaded) -> str:
    """What is wrong with the answer to a call."""
    poisoned = bool((one.inputs["x"] == POISON).any())
    try:
        answer = version.scheduler.infer(one)
    except Internal as error:
        return "" if poisoned else error.message
    return "a poisoned call was answered" if poisoned else problem(one, answer)


def storm(version: Loaded, calls: int) -> list[str]:
    """What is wrong with the answers to many mixed calls of 64 threads."""
    wrong: list[str] = []

    def work(thread: int) -> None:
        chance = random.Random(thread)
        for index in range(calls // THREADS + 1):
            first = 1 + thread * 1_000_000 + index * 100
            rows = [first + row for row in range(chance.choice((1, 1, 1, 2, 3, 8)))]
            if chance.random() < 0.01:
                rows[-1] = POISON
            outputs = chance.choice((["y"], ["width"], ["y", "width"], ["width", "y"]))
            one = call(*rows, width=chance.choice((1, 2, 2, 5)), outputs=outputs)
            if found := reply_problem(one, version):
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


@pytest.mark.parametrize(
    "dynamic",
    [
        DynamicBatching(),
        DynamicBatching(preferred=(4,), delay=0.001),
        DynamicBatching(preserve_order=True, delay=0.0005),
    ],
    ids=["plain", "preferred", "ordered"],
)
@pytest.mark.parametrize("instances", [0, 3])
def test_each_caller_gets_its_rows(dynamic: DynamicBatching, instances: int) -> None:
    model = Marking()
    calls = 10_000 if dynamic == DynamicBatching() and not instances else 2_000
    with closing(loaded(model, dynamic=dynamic, instances=instances)) as version:
        assert storm(version, calls) == []
    assert max(model.sizes) <= 8
    assert max(model.sizes) > 1
    assert model.most <= (instances or 1)
    books = version.statistics.snapshot()
    answered = books.success.count + books.fail.count
    assert answered == THREADS * (calls // THREADS + 1)
    assert books.fail.count > 0
    assert books.executions == sum(execution.infer.count for execution in books.batches.values())
    assert books.inferences == sum(rows * execution.infer.count for rows, execution in books.batches.items())
    assert books.queue.count == books.infer.count == books.success.count
    spent = books.queue.ns + books.input.ns + books.infer.ns + books.output.ns
    assert spent <= books.success.ns


class Shifted(Marking):
    """Gives rows back in the place of their neighbours."""

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        return [np.roll(array, 1, axis=0) for array in super().run(inputs, outputs)]


def test_the_check_finds_rows_that_went_to_another_caller() -> None:
    with closing(loaded(Shifted())) as version:
        assert any("y is" in found for found in storm(version, 640))
