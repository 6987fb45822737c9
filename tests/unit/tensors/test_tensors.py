"""Bytes, shapes and blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.errors import Invalid
from tidemill.tensors import blocks, codec, dtypes, shapes
from tidemill.tensors.dtypes import DataType


@pytest.mark.parametrize("kind", [kind for kind in DataType if kind not in (DataType.BYTES, DataType.BF16)])
def test_round_trip_of_numbers(kind: DataType) -> None:
    array = np.arange(6).astype(kind.numpy).reshape(2, 3)
    data = codec.encode(array, kind)
    assert len(data) == 6 * kind.size
    np.testing.assert_array_equal(codec.decode(kind, [2, 3], data), array)
    assert dtypes.of(array) is kind


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_round_trip_of_bytes(elements: list[bytes]) -> None:
    array = np.array([*elements, None], dtype=object)[:-1]
    assert codec.decode(DataType.BYTES, [len(elements)], codec.encode(array, DataType.BYTES)).tolist() == elements


def test_bf16_rounds_to_nearest_even_and_keeps_special_values() -> None:
    import torch

    values = np.concatenate(
        [np.random.default_rng(0).standard_normal(1000).astype("f4"), np.array([0, -0.0, np.inf, -np.inf, 1e-40], "f4")]
    )
    want = torch.from_numpy(values).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(codec.decode(DataType.BF16, [len(values)], codec.encode(values, DataType.BF16)), want)
    nan = codec.decode(DataType.BF16, [1], codec.encode(np.array([np.nan], "f4"), DataType.BF16))
    assert np.isnan(nan).all()


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ([16, 2**60 + 2], 128),
        ([-1], 4),
        ([2**31 + 1], 4),
        ([2] * 9, 4),
        ([3], 8),
        ([2**30, 2**30], 4),
        ([], 0),
        ([0, 2**31, 2**31], 0),
    ],
)
def test_lying_shapes_are_refused(shape: list[int], size: int) -> None:
    with pytest.raises(Invalid):
        shapes.check_size(DataType.FP32, shape, size)


@pytest.mark.parametrize("data", [b"\x05\0\0\0ab", b"\xff\xff\xff\xffab", b"\x01\0\0\0ab", b"\0\0"])
def test_lying_elements_are_refused(data: bytes) -> None:
    with pytest.raises(Invalid):
        codec.decode(DataType.BYTES, [1], data)


@given(st.integers(1, 3_000_000), st.integers(1, 8))
def test_blocks_cover_the_vector_once_and_evenly(elements: int, shards: int) -> None:
    cut = blocks.cut(elements)
    assert [b.offset for b in cut] == [sum(c.elements for c in cut[:i]) for i in range(len(cut))][: len(cut)]
    assert sum(b.elements for b in cut) == elements
    assert max(b.elements for b in cut) <= blocks.BLOCK
    parts = blocks.assign(cut, shards)
    assert sorted(b.index for part in parts for b in part) == [b.index for b in cut]
    loads = [sum(b.elements for b in part) for part in parts]
    assert max(loads) - min(loads) <= max(b.elements for b in cut)


def test_views_share_memory() -> None:
    flat = np.arange(10, dtype="f4")
    first, second = blocks.views(flat, [(2, 3), (4,)])
    assert first.shape == (2, 3)
    second[0] = 99
    assert flat[6] == 99
