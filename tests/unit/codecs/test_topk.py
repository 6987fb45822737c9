"""What top-k sends, and that nothing is lost that it does not send."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import gradients
from tidemill import errors
from tidemill.compression import catalogue
from tidemill.tensors.blocks import Array


def sent(data: memoryview) -> tuple[Array, Array]:
    middle = len(data) // 2
    return np.frombuffer(data[:middle], "<u4"), np.frombuffer(data[middle:], "<f4")


def largest(total: Array, count: int) -> Array:
    """The plain definition: by magnitude, then by index; no zeros."""
    order = np.argsort(-np.abs(total), kind="stable")[:count]
    return np.sort(order[total[order] != 0])


def check(values: Array, before: Array, fraction: float) -> None:
    codec, residual = catalogue.make("topk", {"fraction": fraction}), before.copy()
    data = codec.encode(values, residual)
    total = values + before
    indices, amounts = sent(data)
    np.testing.assert_array_equal(indices, largest(total, math.ceil(fraction * values.size)))
    np.testing.assert_array_equal(amounts, total[indices])
    out = np.empty_like(values)
    codec.decode(data, values.size, out)
    np.testing.assert_array_equal(out + residual, total)
    assert not (out[residual != 0]).any()


@pytest.mark.parametrize("size", gradients.SIZES)
@pytest.mark.parametrize("fraction", [1e-6, 0.001, 0.01, 0.3, 1])
def test_sends_exactly_the_largest(size: int, fraction: float) -> None:
    for values in gradients.kinds(size).values():
        check(values, np.zeros_like(values), fraction)
    check(gradients.of(size, 1), gradients.of(size, 2), fraction)


@settings(max_examples=100, deadline=None)
@given(values=gradients.floats(1e30), fraction=st.floats(1e-6, 1), seed=st.integers(0, 9))
def test_sends_exactly_the_largest_of_anything(values: Array, fraction: float, seed: int) -> None:
    check(values, gradients.of(values.size, seed), fraction)


@pytest.mark.parametrize("fraction", [0.001, 0.01, 0.1])
def test_what_was_sent_and_the_residual_are_all_gradients(fraction: float) -> None:
    codec, elements = catalogue.make("topk", {"fraction": fraction}), 50_000
    residual, received = np.zeros(elements, np.float32), np.zeros(elements, np.float32)
    everything = np.zeros(elements)
    for step in range(50):
        values = gradients.of(elements, step)
        everything += values
        codec.accumulate(codec.encode(values, residual), elements, received, 1.0)
    difference = received.astype(np.float64) + residual - everything
    assert np.abs(difference).max() <= 1e-6 * np.abs(everything).max()
    assert np.abs(residual).max() > 0


def test_every_element_is_sent_in_the_end() -> None:
    codec, residual = catalogue.make("topk", {"fraction": 0.1}), np.zeros(1000, np.float32)
    seen = np.zeros(1000, bool)
    for _ in range(40):
        seen[sent(codec.encode(np.linspace(0.5, 1, 1000, dtype=np.float32), residual))[0]] = True
    assert seen.all()


def test_an_overflowing_residual_is_refused_and_kept() -> None:
    codec, residual = catalogue.make("topk"), np.full(100, 3e38, np.float32)
    with pytest.raises(errors.Invalid) as refusal:
        codec.encode(np.full(100, 3e38, np.float32), residual)
    assert refusal.value.reason == "OVERFLOW"
    assert (residual == np.float32(3e38)).all()


def test_wants_a_residual() -> None:
    with pytest.raises(TypeError, match="residual"):
        catalogue.make("topk").encode(np.ones(100, np.float32))


def forged(indices: list[int], values: list[float]) -> bytes:
    return np.array(indices, "<u4").tobytes() + np.array(values, "<f4").tobytes()


@pytest.mark.parametrize(
    ("indices", "reason"),
    [
        ([1, 1], "BAD_ENCODING"),
        ([2, 1], "BAD_ENCODING"),
        ([1, 100], "BAD_ENCODING"),
        ([1, 2**32 - 1], "BAD_ENCODING"),
        ([2**31, 3], "BAD_ENCODING"),
        ([0, 1, 2], "SIZE_MISMATCH"),
    ],
)
def test_refuses_indices_that_no_encoder_makes(indices: list[int], reason: str) -> None:
    codec, into = catalogue.make("topk", {"fraction": 0.02}), np.zeros(100, np.float32)
    with pytest.raises(errors.Invalid) as refusal:
        codec.accumulate(forged(indices, [1.0] * len(indices)), 100, into, 1.0)
    assert refusal.value.reason == reason
    assert not into.any()


def test_touches_only_what_was_sent() -> None:
    codec, into = catalogue.make("topk", {"fraction": 0.02}), np.full(100, np.nan, np.float32)
    into[[3, 99]] = 1
    codec.accumulate(forged([3, 99], [2.0, -4.0]), 100, into, 0.5)
    assert into[3] == 2
    assert into[99] == -1
    assert np.isnan(into).sum() == 98


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1, "much", math.nan])
def test_a_fraction_is_a_part(fraction: object) -> None:
    with pytest.raises(errors.Invalid, match=r"codec\.parameters\.fraction"):
        catalogue.make("topk", {"fraction": fraction})


def test_nothing_to_send_is_no_bytes() -> None:
    codec, values = catalogue.make("topk"), np.zeros(100, np.float32)
    data = codec.encode(values, values.copy())
    assert data.nbytes == 0
    out = np.ones(100, np.float32)
    codec.decode(data, 100, out)
    assert not out.any()
