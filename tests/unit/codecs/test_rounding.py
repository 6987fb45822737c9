"""How near the rounding codecs come, and where they end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.support import gradients
from tidemill import errors
from tidemill.compression import catalogue
from tidemill.tensors.blocks import Array

MAX = float(np.finfo(np.float32).max)
BITS = {"fp16": (10, -14, 65520.0), "bf16": (7, -126, float.fromhex("0x1.ffp127"))}
"""Bits after the point, the least exponent of a normal number, and what is the first to round to infinity."""


@contextmanager
def pytorch(there: bool) -> Iterator[None]:
    """With PyTorch loaded or as if it were not."""
    if there:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "torch")
        yield


def carried(name: str, values: Array) -> Array:
    codec, out = catalogue.make(name), np.empty_like(values)
    codec.decode(codec.encode(values), values.size, out)
    return out


def half_ulp(values: Array, name: str) -> Array:
    bits, least, _ = BITS[name]
    exponents = np.frexp(np.abs(values.astype(np.float64)))[1] - 1
    halves: Array = np.ldexp(0.5, np.maximum(exponents, least) - bits)
    return halves


def check_halves(name: str, values: Array) -> None:
    exact = values.astype(np.float64)
    for there in (True, False):
        with pytorch(there):
            out = carried(name, values)
        assert (np.abs(out - exact) <= half_ulp(values, name)).all()
        kind = torch.float16 if name == "fp16" else torch.bfloat16
        np.testing.assert_array_equal(out, torch.from_numpy(values).to(kind).to(torch.float32).numpy())


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("size", gradients.SIZES)
def test_halves_are_within_half_an_ulp(name: str, size: int) -> None:
    for values in gradients.kinds(size).values():
        check_halves(name, values)


@settings(max_examples=100, deadline=None)
@given(values=gradients.floats(65504))
def test_any_halves_are_within_half_an_ulp(values: Array) -> None:
    check_halves("fp16", values)
    check_halves("bf16", values)


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_ties_go_to_the_even_neighbour(name: str) -> None:
    unit = 2.0 ** -BITS[name][0]
    values = np.array([1 + unit / 2, 1 + 3 * unit / 2, 1 + 5 * unit / 2], np.float32)
    for there in (True, False):
        with pytorch(there):
            np.testing.assert_array_equal(carried(name, values), np.array([1, 1 + 2 * unit, 1 + 2 * unit], np.float32))


@pytest.mark.parametrize("name", ["fp16", "bf16"])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("place", [0, 3, 776])
def test_overflow_is_refused_exactly_where_it_begins(name: str, there: bool, sign: int, place: int) -> None:
    values, border = gradients.of(777), np.float32(BITS[name][2])
    with pytorch(there):
        values[place] = sign * np.nextafter(border, np.float32(0))
        assert np.isfinite(carried(name, values)).all()
        for over in (border, np.float32(MAX)):
            values[place] = sign * over
            with pytest.raises(errors.Invalid, match=f"element {place} .*{name} ends at") as refusal:
                catalogue.make(name).encode(values)
            assert refusal.value.reason == "OVERFLOW"


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF800001, 0x7F800000])
@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_no_nan_becomes_a_number(name: str, there: bool, bits: int) -> None:
    values = np.array([1, 2, bits], "<u4")
    with pytorch(there), pytest.raises(errors.Invalid) as refusal:
        catalogue.make(name).encode(values.view("<f4"))
    assert refusal.value.reason == "NON_FINITE"


def check_int8(values: Array) -> None:
    codec, out = catalogue.make("int8"), np.empty_like(values)
    data = codec.encode(values)
    codec.decode(data, values.size, out)
    groups = -(-values.size // 4096)
    scales = np.frombuffer(data, "<f4", groups).astype(np.float64)
    # In float64 everything is exact here, so the bound is exact too.
    error = np.abs(out.astype(np.float64) - values.astype(np.float64))
    assert (error <= np.repeat(scales, 4096)[: values.size] / 2).all()
    largest = np.array([np.abs(values[i * 4096 : (i + 1) * 4096]).max() for i in range(groups)], np.float64)
    assert (scales <= np.maximum(largest / 127 * (1 + 2**-23), 2.0**-126)).all()
    assert (scales >= largest / 127 * (1 - 2**-15)).all()


@pytest.mark.parametrize("size", gradients.SIZES)
def test_int8_is_within_half_a_scale(size: int) -> None:
    for values in gradients.kinds(size).values():
        check_int8(values)
    check_int8(np.full(size, MAX, np.float32))


@settings(max_examples=100, deadline=None)
@given(values=gradients.floats(MAX))
@example(values=np.array([MAX, -MAX, 0], np.float32))
def test_any_int8_is_within_half_a_scale(values: Array) -> None:
    check_int8(values)


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.integers(-254, 254), min_size=1, max_size=200),
    scale=st.floats(2.0**-100, 2.0**100, width=32),
    ulps=st.integers(-2, 2),
)
def test_int8_rounds_right_beside_ties(steps: list[int], scale: float, ulps: int) -> None:
    coarse = (np.array([scale], "<f4").view("<u4") & 0xFFFFFF00).view("<f4")[0]
    values = np.array([254, *steps], np.float32) * (coarse / np.float32(2))
    values[1:].view("<u4")[:] += np.where(values[1:] != 0, ulps, 0).astype("<i4").view("<u4")
    check_int8(values)


@pytest.mark.parametrize("scale", [0.0, -0.0, -1.0, 2.0**-127, 2.0**-149, MAX, MAX / 126])
def test_int8_refuses_strange_scales(scale: float) -> None:
    data = np.array([scale], "<f4").tobytes() + b"\x7f"
    with pytest.raises(errors.Invalid) as refusal:
        catalogue.make("int8").check(data, 1)
    assert refusal.value.reason == "BAD_ENCODING"


def test_int8_refuses_the_integer_that_has_no_opposite() -> None:
    with pytest.raises(errors.Invalid) as refusal:
        catalogue.make("int8").check(np.array([1], "<f4").tobytes() + b"\x01\x80", 2)
    assert refusal.value.reason == "BAD_ENCODING"
