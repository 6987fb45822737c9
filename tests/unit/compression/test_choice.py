"""The codec that is fastest with these figures is chosen, and the figures are said."""

import itertools

import numpy as np
import pytest

from tests.support import gradients
from tidemill.clock import SystemClock
from tidemill.compression import catalogue
from tidemill.compression.choice import DEFAULT, Cost, Meter, choose
from tidemill.errors import Invalid

ELEMENTS = 25_000_000
ALL = ("fp32", "fp16", "bf16", "int8", "topk")
GIGABIT = 125e6


def cost(codec: str, encode: float, decode: float, size: float) -> Cost:
    """Times in milliseconds for all elements."""
    return Cost(codec=codec, encode=encode / 1e3 / ELEMENTS, decode=decode / 1e3 / ELEMENTS, size=size)


COSTS = [
    cost("fp32", 0, 15, 4),
    cost("fp16", 18, 15, 2),
    cost("bf16", 25, 15, 2),
    cost("int8", 42, 25, 1.001),
    cost("topk", 75, 14, 0.08),
]


@pytest.mark.parametrize(
    ("bandwidth", "allowed", "wanted"),
    [
        (GIGABIT, ALL, "topk"),
        (GIGABIT, DEFAULT, "int8"),
        (GIGABIT, ("fp32", "bf16"), "bf16"),
        (GIGABIT, ("fp32", "fp16", "bf16"), "fp16"),
        (GIGABIT, ("fp32",), "fp32"),
        (GIGABIT, ("topk",), "topk"),
        (2e9, ALL, "fp32"),
        (2e9, DEFAULT, "fp32"),
        (1e8, DEFAULT, "int8"),
        (1e12, ALL, "fp32"),
    ],
)
def test_takes_what_is_fastest_of_what_is_allowed(bandwidth: float, allowed: tuple[str, ...], wanted: str) -> None:
    choice = choose(COSTS, bandwidth=bandwidth, elements=ELEMENTS, allowed=allowed)
    assert choice.codec == wanted
    assert set(choice.seconds) == set(allowed)
    assert choice.seconds[wanted] <= min(choice.seconds.values()) / 0.95


def test_topk_is_never_chosen_unasked() -> None:
    assert "topk" not in DEFAULT
    for exponent in range(3, 12):
        assert choose(COSTS, bandwidth=10.0**exponent, elements=ELEMENTS).codec in DEFAULT


def test_the_estimate_for_exact_pushes_is_what_was_measured() -> None:
    choice = choose(COSTS, bandwidth=GIGABIT, elements=ELEMENTS)
    assert choice.seconds["fp32"] == pytest.approx(ELEMENTS * 4 / GIGABIT)


def test_a_small_saving_is_not_worth_less_exactness() -> None:
    costs = [cost("fp32", 0, 0, 4), cost("bf16", 48, 0, 2), cost("int8", 72, 0, 1)]  # 100, 98 and 97 ms
    choice = choose(costs, bandwidth=1e9, elements=ELEMENTS)
    assert choice.seconds["int8"] < choice.seconds["bf16"] < choice.seconds["fp32"]
    assert choice.codec == "fp32"


def test_says_why_in_one_sentence_with_the_figures() -> None:
    choice = choose(COSTS, bandwidth=GIGABIT, elements=ELEMENTS)
    assert choice.reason == (
        "at 125 MB/s a push of 25000000 elements takes 263 ms by int8 (67 ms to convert, 196 ms to send), "
        "against 800 ms by fp32, 433 ms by bf16"
    )


def test_what_cannot_carry_the_sample_is_not_chosen() -> None:
    costs = [COSTS[0], Cost(codec="fp16", encode=0, decode=0, size=0, problem="values: element 1 is 1e+06")]
    assert choose(costs, bandwidth=1e6, elements=ELEMENTS, allowed=("fp32", "fp16")).codec == "fp32"
    with pytest.raises(Invalid, match="element 1") as refusal:
        choose(costs, bandwidth=1e6, elements=ELEMENTS, allowed=("fp16",))
    assert refusal.value.reason == "NO_CODEC"


@pytest.mark.parametrize("bandwidth", [0, -1, float("nan")])
def test_a_line_must_have_been_measured(bandwidth: float) -> None:
    with pytest.raises(Invalid) as refusal:
        choose(COSTS, bandwidth=bandwidth, elements=ELEMENTS)
    assert refusal.value.reason == "NO_BANDWIDTH"


class Scripted(SystemClock):
    """A clock that says what it is told to, so that figures are known."""

    def __init__(self, *times: float) -> None:
        self._times = iter(times)

    def monotonic(self) -> float:
        return next(self._times)


def test_the_best_round_counts() -> None:
    clock = Scripted(0, 5, 9, 10, 12, 20, 30, 33, 36)
    measured = Meter(clock).measure("int8", catalogue.make("int8"), [gradients.of(900), gradients.of(100)])
    assert measured == Cost(codec="int8", encode=2 / 1000, decode=3 / 1000, size=1008 / 1000)


@pytest.mark.parametrize("name", catalogue.names())
def test_measures_real_codecs_without_changing_the_sample(name: str) -> None:
    sample = [gradients.of(5000, seed) for seed in range(3)]
    before = [block.copy() for block in sample]
    measured = Meter(SystemClock()).measure(name, catalogue.make(name), sample)
    assert measured.encode > 0
    assert measured.decode > 0
    assert 0 < measured.size <= 4
    for block, copy in itertools.zip_longest(sample, before):
        np.testing.assert_array_equal(block, copy)


def test_an_overflow_of_the_sample_is_a_problem_not_an_error() -> None:
    sample = [np.array([1, 1e6], np.float32)]
    assert "65504" in Meter(SystemClock()).measure("fp16", catalogue.make("fp16"), sample).problem
