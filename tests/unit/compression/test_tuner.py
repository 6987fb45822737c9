"""A codec is chosen after some pushes that were timed, by what half of the bytes takes less."""

from collections.abc import Sequence

import numpy as np
import pytest

from tidemill.compression.choice import DEFAULT, Cost
from tidemill.compression.tuner import PROBE, PUSHES, SAMPLE, SMALL, Tuner, measured
from tidemill.tensors.blocks import Array

ELEMENTS = 1_000_000
COSTS = [
    Cost(codec="fp32", encode=0, decode=0, size=4),
    Cost(codec="bf16", encode=1e-9, decode=1e-9, size=2),
    Cost(codec="int8", encode=2e-9, decode=2e-9, size=1),
]
"""2 and 4 ms for all elements."""
BLOCKS = [np.full(4, index, np.float32) for index in range(10)]


def costs(sample: Sequence[Array]) -> Sequence[Cost]:
    return COSTS


def tuned(*times: tuple[float, float]) -> Tuner:
    """After pushes that took so long, exact ones and probes in turn."""
    tuner = Tuner(costs, pushes=len(times))
    for exact, probe in times:
        for codec, seconds in (("fp32", exact), (PROBE, probe)):
            assert not tuner.is_due
            assert tuner.codec == codec
            tuner.pushed(ELEMENTS, seconds)
    assert tuner.is_due
    return tuner


def line(seconds: float, besides: float = 0.0) -> tuple[float, float]:
    """What an exact push and a probe take by a line on which an exact one takes so long, and all else so long."""
    return besides + seconds, besides + seconds / 2 + 0.002


@pytest.mark.parametrize("besides", [0.0, 0.004])
@pytest.mark.parametrize(
    ("seconds", "codec"), [(0.1, "int8"), (0.032, "int8"), (0.006, "bf16"), (0.003, "fp32"), (0.0005, "fp32")]
)
def test_the_slower_the_line_the_less_is_sent(seconds: float, codec: str, besides: float) -> None:
    tuner = tuned(line(seconds, besides))
    choice = tuner.choose(BLOCKS)
    assert (choice.codec, tuner.codec) == (codec, codec)
    assert choice is tuner.choice
    assert not tuner.is_due
    assert choice.seconds["fp32"] == pytest.approx(besides + seconds)
    assert choice.seconds["bf16"] == pytest.approx(besides + seconds / 2 + 0.002)
    assert "in any case" in choice.reason or not besides


def test_what_a_push_takes_by_any_codec_is_not_the_lines() -> None:
    choice = tuned(line(0.003, besides=5.0)).choose(BLOCKS)
    assert choice.codec == "fp32", "neither the optimizer nor a slow worker is a slow line"
    choice = tuned(line(0.05, besides=5.0)).choose(BLOCKS)
    assert choice.codec == "fp32", "and what is saved would not be noticed"


def test_the_best_push_of_each_kind_counts() -> None:
    assert tuned((5.0, 0.3), (0.003, 0.2), (0.4, 0.0035)).choose(BLOCKS).codec == "fp32"
    assert tuned((5.0, 0.3), (0.1, 0.2), (0.4, 0.052)).choose(BLOCKS).codec == "int8"


def test_half_of_the_bytes_may_take_longer() -> None:
    choice = tuned((0.010, 0.025)).choose(BLOCKS)
    assert choice.codec == "fp32"
    assert choice.seconds["fp32"] == pytest.approx(0.010)


def test_shared_memory_is_exact_at_once() -> None:
    tuner = Tuner(costs)
    assert tuner.codec == "fp32"
    tuner.pushed(0, 0.0)
    assert tuner.choice is not None
    assert tuner.choice.codec == tuner.codec == "fp32"
    assert "shared" in tuner.choice.reason
    assert not tuner.is_due


def test_small_pushes_are_exact_at_once_however_slow() -> None:
    tuner = Tuner(costs)
    tuner.pushed(SMALL // 4 - 1, 3.0)
    assert tuner.choice is not None
    assert tuner.choice.codec == "fp32"
    assert f"{SMALL - 4} bytes" in tuner.choice.reason


def test_a_few_blocks_from_all_over_are_looked_at() -> None:
    seen: list[list[float]] = []

    def look(sample: Sequence[Array]) -> Sequence[Cost]:
        seen.append([float(block[0]) for block in sample])
        return COSTS

    for count in (1, 3, 4, 5, 10):
        tuner = Tuner(look, pushes=1)
        for _ in range(2):
            tuner.pushed(ELEMENTS, 0.1)
        tuner.choose(BLOCKS[:count])
    assert seen[0] == [0.0]
    assert seen[-1] == [0.0, 3.0, 6.0, 9.0]
    assert all(1 <= len(each) <= SAMPLE for each in seen)


def test_unless_told_otherwise_real_codecs_are_measured_after_some_pushes() -> None:
    found = measured([np.random.default_rng(0).standard_normal(5000, dtype=np.float32)])
    assert [cost.codec for cost in found] == list(DEFAULT)
    assert all(cost.encode >= 0 and cost.decode > 0 and not cost.problem for cost in found)
    tuner = Tuner()
    for _ in range(2 * PUSHES):
        assert not tuner.is_due
        tuner.pushed(ELEMENTS, 1.0)
    assert tuner.is_due
