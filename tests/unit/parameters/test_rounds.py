"""The mean of a round."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.errors import Invalid
from tidemill.parameters.part import Part
from tidemill.parameters.rounds import Contribution, Header, Mean
from tidemill.tensors.blocks import Array, Block


def part(*sizes: int) -> Part:
    starts = np.cumsum([0, *sizes])
    return Part([Block(i, int(starts[i]), size) for i, size in enumerate(sizes)])


def mean(contributions: list[Contribution], cut: Part) -> Array | None:
    found = Mean(contributions, cut)
    if not found.samples:
        return None
    out = np.empty(cut.elements, np.float32)
    for block in cut.blocks:
        found.into(cut.view(out, block.index), block.index)
    return out


def contribution(samples: int, values: Array) -> Contribution:
    return Contribution(0, samples, values.copy())


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 2**32)), min_size=1, max_size=8))
def test_is_the_mean_over_samples(workers: list[tuple[int, int]]) -> None:
    given = [(samples, np.random.default_rng(seed).standard_normal(70, dtype=np.float32)) for samples, seed in workers]
    found = mean([contribution(samples, values) for samples, values in given], part(30, 30, 10))
    total = sum(samples for samples, _ in given)
    if total == 0:
        assert found is None
        return
    expected = sum(samples * values.astype(np.float64) for samples, values in given) / total
    assert found is not None
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 5))
def test_does_not_depend_on_the_cut(sizes: list[int], workers: int) -> None:
    values = [np.random.default_rng(i).standard_normal(sum(sizes), dtype=np.float32) for i in range(workers)]
    cut = mean([contribution(i + 1, v) for i, v in enumerate(values)], part(*sizes))
    whole = mean([contribution(i + 1, v) for i, v in enumerate(values)], part(sum(sizes)))
    assert cut is not None
    assert whole is not None
    np.testing.assert_array_equal(cut, whole)


@pytest.mark.parametrize("samples", [1, 3, 7, 10**9])
def test_one_worker_with_samples_keeps_its_gradients_to_the_bit(samples: int) -> None:
    values = np.random.default_rng(0).standard_normal(50, dtype=np.float32)
    idle = Contribution(0, 0, np.empty(0, np.float32))
    found = mean([idle, contribution(samples, values), idle], part(50))
    assert found is not None
    np.testing.assert_array_equal(found, values)


def test_sums_that_overflow_make_no_noise() -> None:
    huge = np.full(4, np.finfo(np.float32).max, np.float32)
    found = mean([contribution(1, huge) for _ in range(3)], part(4))
    assert found is not None


@pytest.mark.parametrize("field", ["step", "attempt", "samples"])
def test_numbers_below_zero_are_refused(field: str) -> None:
    wrong: dict[str, Any] = {"worker": 0, "step": 0, "attempt": 0, "samples": 0, field: -1}
    with pytest.raises(Invalid, match=field):
        Header(**wrong)
