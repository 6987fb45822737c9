"""A codec is chosen after some pushes that were timed, by what they took beyond the call itself."""

from collections.abc import Sequence

import numpy as np
import pytest

from tidemill.compression.choice import DEFAULT, Cost
from tidemill.compression.tuner import PUSHES, SAMPLE, SMALL, Tuner, measured
from tidemill.tensors.blocks import Array

ELEMENTS = 1_000_000
SENT = 4 * ELEMENTS
COSTS = [
    Cost(codec="fp32", encode=0, decode=0, size=4),
    Cost(codec="bf16", encode=1e-9, decode=1e-9, size=2),
    Cost(codec="int8", encode=2e-9, decode=2e-9, size=1),
]
"""2 and 4 ms for all elements."""
BLOCKS = [np.full(4, index, np.float32) for index in range(10)]


def costs(sample: Sequence[Array]) -> Sequence[Cost]:
    return COSTS


def tuned(seconds: Sequence[float], calls: Sequence[float] | None = None) -> Tuner:
    tuner = Tuner(costs, pushes=len(seconds))
    for push, call in zip(seconds, calls or [0.0] * len(seconds), strict=True):
        assert not tuner.is_due
        tuner.pushed(SENT, push, call)
    assert tuner.is_due
    return tuner


@pytest.mark.parametrize(
    ("seconds", "codec"),
    [(0.032, "int8"), (0.1, "int8"), (0.005, "bf16"), (0.003, "fp32"), (0.0005, "fp32")],
)
def test_the_slower_the_line_the_less_is_sent(seconds: float, codec: str) -> None:
    tuner = tuned([seconds])
    choice = tuner.choose(BLOCKS)
    assert choice.codec == codec
    assert choice is tuner.choice
    assert not tuner.is_due
    assert choice.seconds["fp32"] == pytest.approx(seconds)
    assert "MB/s" in choice.reason


def test_the_best_push_counts_as_waits_only_ever_add() -> None:
    assert tuned([5.0, 0.0005, 0.4]).choose(BLOCKS).codec == "fp32"


def test_what_the_call_takes_is_not_the_lines() -> None:
    assert tuned([0.02]).choose(BLOCKS).codec == "int8"
    choice = tuned([0.02, 0.02], [0.0185, 0.03]).choose(BLOCKS)
    assert choice.codec == "bf16", "at most half of a push is taken for the call: 10 ms are the line's"
    assert choice.seconds["fp32"] == pytest.approx(0.02)
    choice = tuned([0.0072], [0.0036]).choose(BLOCKS)
    assert choice.codec == "fp32", "the call takes as long by any codec"


def test_shared_memory_is_exact_at_once() -> None:
    tuner = Tuner(costs)
    tuner.pushed(0, 0.0, 0.0)
    assert tuner.choice is not None
    assert tuner.choice.codec == "fp32"
    assert "shared" in tuner.choice.reason
    assert not tuner.is_due


def test_small_pushes_are_exact_at_once_however_slow() -> None:
    tuner = Tuner(costs)
    tuner.pushed(SMALL - 1, 3.0, 0.001)
    assert tuner.choice is not None
    assert tuner.choice.codec == "fp32"
    assert f"{SMALL - 1} bytes" in tuner.choice.reason


def test_a_few_blocks_from_all_over_are_looked_at() -> None:
    seen: list[list[float]] = []

    def look(sample: Sequence[Array]) -> Sequence[Cost]:
        seen.append([float(block[0]) for block in sample])
        return COSTS

    for count in (1, 3, 4, 5, 10):
        tuner = Tuner(look, pushes=1)
        tuner.pushed(SENT, 0.1, 0.0)
        tuner.choose(BLOCKS[:count])
    assert seen[0] == [0.0]
    assert seen[-1] == [0.0, 3.0, 6.0, 9.0]
    assert all(1 <= len(each) <= SAMPLE for each in seen)


def test_unless_told_otherwise_real_codecs_are_measured_after_some_pushes() -> None:
    found = measured([np.random.default_rng(0).standard_normal(5000, dtype=np.float32)])
    assert [cost.codec for cost in found] == list(DEFAULT)
    assert all(cost.encode >= 0 and cost.decode > 0 and not cost.problem for cost in found)
    tuner = Tuner()
    for _ in range(PUSHES):
        assert not tuner.is_due
        tuner.pushed(SENT, 1.0, 0.0)
    assert tuner.is_due
