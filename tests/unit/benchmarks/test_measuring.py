"""What benchmarks of the parameter server make of their figures, and parts of them that could be wrong unseen."""

import numpy as np
import pytest

from scripts.benchmarks.ladder.payloads import PAYLOADS
from scripts.benchmarks.measuring import gates
from scripts.benchmarks.measuring.gates import Gate
from scripts.benchmarks.straggling import digits
from scripts.benchmarks.straggling.crew import Budget
from scripts.benchmarks.straggling.delays import Delays

ROUNDS = [{"a": 1.0, "b": 2.0}, {"a": 3.0, "b": 3.0}, {"a": 10.0, "b": 4.0, "c": 1.0}]


def test_a_promise_is_judged_by_the_median_of_the_rounds_ratios() -> None:
    most = Gate("a / b", lambda found: found["a"] / found["b"], 1.2)
    least = Gate("a / b", lambda found: found["a"] / found["b"], 1.2, least=True)
    judged = gates.judge([most, least], ROUNDS)
    assert [row["ratio"] for row in judged] == [1.0, 1.0]
    assert judged[0]["ratios"] == [0.5, 1.0, 2.5]
    assert [row["kept"] for row in judged] == [True, False]
    assert gates.broken(judged)
    assert not gates.broken(judged[:1])


def test_what_was_not_measured_in_every_round_is_not_judged() -> None:
    judged = gates.judge([Gate("c", lambda found: found["c"], 1.0)], ROUNDS)
    assert judged[0]["ratio"] is None
    assert judged[0]["kept"] is None
    assert not gates.broken(judged)
    assert gates.medians(ROUNDS) == {"a": 3.0, "b": 3.0}
    assert gates.spread(ROUNDS, "a") == (1.0, 10.0)


@pytest.mark.parametrize("name", PAYLOADS)
def test_pieces_of_a_payload_cover_it_once_in_messages_of_at_most_1_mib(name: str) -> None:
    payload = PAYLOADS[name]
    pieces = payload.pieces
    assert [piece.start for piece in pieces] == [0, *(piece.stop for piece in pieces[:-1])]
    assert pieces[-1].stop == payload.total
    assert max(piece.stop - piece.start for piece in pieces) <= 2**18


def test_delays_are_the_same_each_time_and_as_frequent_as_said() -> None:
    delays = Delays(0.02, 0.1, 0.1, 1)
    found = [delays.of(worker, step) for worker in range(4) for step in range(2500)]
    assert found == [delays.of(worker, step) for worker in range(4) for step in range(2500)]
    assert sorted(set(found)) == pytest.approx([0.02, 0.12])
    assert sum(span > 0.1 for span in found) / len(found) == pytest.approx(0.1, abs=0.01)
    assert found != [Delays(0.02, 0.1, 0.1, 2).of(worker, step) for worker in range(4) for step in range(2500)]


def test_the_digits_models_gradient_is_that_of_its_loss() -> None:
    data = digits.Digits.load()
    x, y = data.batch(0, 0, 1)
    flat = digits.first_values(1).astype(np.float64)
    exact = digits.gradient(flat, x, y)
    # Some parameters of every tensor.
    for index in (100, 700, 2047, 2050, 2100, 2300, 2401, 2409):
        step = np.zeros_like(flat)
        step[index] = 1e-6
        measured = (digits.loss(flat + step, x, y) - digits.loss(flat - step, x, y)) / 2e-6
        assert exact[index] == pytest.approx(measured, abs=1e-5)


def test_workers_share_a_budget_of_steps_and_are_held_to_as_many_each_in_rounds() -> None:
    free = Budget(2, 4, even=False)
    assert [free.take(0), free.take(0), free.take(0), free.take(1), free.take(1)] == [True, True, True, True, False]
    assert (free.made, free.widest) == ([3, 1], 3)
    even = Budget(2, 4, even=True)
    assert [even.take(0), even.take(0), even.take(0), even.take(1)] == [True, True, False, True]
    for _ in range(3):
        even.made_one()
    assert not even.over.is_set()
    even.made_one()
    assert even.over.is_set()
    assert even.ended > 0
