"""Sums over whole tensors do not depend on who holds which block."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rules import blocks_of
from tidemill.errors import Invalid
from tidemill.parameters.rows import Rows
from tidemill.parameters.segments import Partials, Segments, combine
from tidemill.tensors.blocks import Block, assign

TENSORS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(sum)


def cut(tensors: list[int], size: int) -> list[Block]:
    total = sum(tensors)
    return blocks_of([min(size, total - start) for start in range(0, total, size)])


@given(TENSORS, st.integers(1, 50))
def test_segments_are_all_elements_of_all_tensors_in_order(tensors: list[int], size: int) -> None:
    blocks = cut(tensors, size)
    owner = np.repeat(np.arange(len(tensors)), tensors)
    segments = Segments(tensors, blocks)
    position = 0
    for segment in segments.all:
        block = blocks[segment.at]
        assert block.index == segment.block
        assert block.offset + segment.where.start == position
        assert (owner[block.offset :][segment.where] == segment.tensor).all()
        position += segment.where.stop - segment.where.start
    assert position == sum(tensors)
    assert sorted(map(tuple, segments.keys)) == list(map(tuple, segments.keys))


@given(TENSORS, st.integers(1, 50), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_totals_are_the_same_bits_for_any_number_of_shards(
    tensors: list[int], size: int, shards: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    values = (random.standard_normal(sum(tensors)) * 10.0 ** random.uniform(-9, 9, sum(tensors))).astype(np.float32)
    blocks = cut(tensors, size)

    def totals(count: int) -> bytes:
        partials = [
            Segments(tensors, part).squares([values[block.slice] for block in part]) for part in assign(blocks, count)
        ]
        return combine([partials[i] for i in random.permutation(count)], len(tensors)).tobytes()

    assert totals(shards) == totals(1)
    expected = [float(np.square(t, dtype=np.float64).sum()) for t in np.split(values, np.cumsum(tensors)[:-1])]
    np.testing.assert_allclose(np.frombuffer(totals(1)), expected, rtol=1e-12)


def test_rows_are_summed_as_the_block_that_they_are_of() -> None:
    rows = Rows(np.array([1, 4]), np.array([[1, 2], [3, 4]], np.float32))
    found = Segments([10, 5], blocks_of([10, 5])).squares([rows, np.full(5, 2, np.float32)])
    np.testing.assert_array_equal(combine([found], 2), [[30], [20]])


def test_rows_of_a_block_in_several_tensors_are_refused() -> None:
    rows = Rows(np.array([1]), np.ones((1, 2), np.float32))
    with pytest.raises(Invalid) as refused:
        Segments([6, 4], blocks_of([10])).squares([rows])
    assert refused.value.reason == "MIXED_BLOCK"


def test_a_shard_without_blocks_has_empty_partials() -> None:
    empty = Segments([3], []).squares([])
    full = Segments([3], blocks_of([3])).squares([np.ones(3, np.float32)])
    np.testing.assert_array_equal(combine([empty, full], 1), [[3]])


def partials(keys: list[tuple[int, int]], width: int = 1) -> Partials:
    return Partials(np.array(keys, np.int64).reshape(-1, 2), np.ones((len(keys), width)))


@pytest.mark.parametrize(
    "found",
    [
        [],
        [partials([(0, 0)]), partials([(0, 0)])],
        [partials([(2, 0)])],
        [partials([(-1, 0)])],
        [partials([(0, 0)]), partials([(1, 0)], width=2)],
    ],
    ids=["none", "twice", "beyond", "below", "widths"],
)
def test_partials_that_do_not_fit_together_are_refused(found: list[Partials]) -> None:
    with pytest.raises(Invalid) as refused:
        combine(found, 2)
    assert refused.value.reason == "PARTIALS_MISMATCH"


def test_partials_of_wrong_shape_or_type_are_refused() -> None:
    keys, sums = np.zeros((1, 2), np.int64), np.zeros((1, 1))
    for bad in ((keys[:, 0], sums), (keys.astype(np.int32), sums), (keys, sums[0]), (keys, sums.astype(np.float32))):
        with pytest.raises(Invalid):
            Partials(*bad)
