"""Where tensors and blocks overlap, and sums over whole tensors that do not depend on who holds which block.

A *segment* is the part of one tensor in one block. Each shard sums over its segments; all these partial sums together
are added up in order of (tensor, block). So the totals are the same to the bit for any number of shards, as long as the
flat vector is cut into the same blocks.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from tidemill.errors import Invalid
from tidemill.parameters.rows import Rows
from tidemill.tensors.blocks import Array, Block


@dataclass(frozen=True, slots=True, eq=False)
class Partials:
    """What one shard knows of sums over tensors.

    Args:
        keys: (tensor, block) of each segment, by number in the group and by index; int64 [segments, 2].
        sums: float64 [segments, width].

    Raises:
        Invalid: they do not fit together.
    """

    keys: Array
    sums: Array

    def __post_init__(self) -> None:
        keys, sums = self.keys, self.sums
        if keys.dtype != np.int64 or keys.ndim != 2 or keys.shape[1] != 2:
            raise _mismatch(f"keys must be int64 [segments, 2], not {keys.dtype} {keys.shape}")
        if sums.dtype != np.float64 or sums.ndim != 2 or len(sums) != len(keys):
            raise _mismatch(f"sums must be float64 [{len(keys)}, width], not {sums.dtype} {sums.shape}")


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a tensor in a block of a shard."""

    tensor: int
    """Number of the tensor in the group."""
    block: int
    """Index of the block in the group."""
    at: int
    """Position of the block among those of the shard."""
    where: slice
    """Where it lies in the block."""


class Segments:
    """The segments of one shard, in order of (tensor, block).

    Args:
        tensors: number of elements of each tensor of the group, in the order of the flat vector.
        blocks: those of the shard, in order of index.
    """

    def __init__(self, tensors: Sequence[int], blocks: Sequence[Block]) -> None:
        self.all = tuple(_cut(tensors, blocks))
        self.keys: Array = np.array([(s.tensor, s.block) for s in self.all], np.int64).reshape(-1, 2)
        self._inside: dict[int, list[Segment]] = {}
        for segment in self.all:
            self._inside.setdefault(segment.at, []).append(segment)

    def inside(self, at: int) -> Sequence[Segment]:
        """Those in the block at a position."""
        return self._inside[at]

    def squares(self, *vectors: Sequence[Array | Rows]) -> Partials:
        """The sum of squares of each segment, one column for each of `vectors`.

        Args:
            vectors: each one float32 array a block of the shard, or rows of a block that lies in one tensor alone.

        Raises:
            Invalid: rows of a block that lies in several tensors.
        """
        sums = np.zeros((len(self.all), len(vectors)))
        for row, segment in enumerate(self.all):
            for column, blocks in enumerate(vectors):
                values = blocks[segment.at]
                if isinstance(values, Rows):
                    self._check_alone(segment)
                    sums[row, column] = _squares(values.gradients)
                else:
                    sums[row, column] = _squares(values[segment.where])
        return Partials(self.keys, sums)

    def _check_alone(self, segment: Segment) -> None:
        if len(self._inside[segment.at]) > 1:
            raise Invalid(f"block {segment.block} has rows, but lies in several tensors", reason="MIXED_BLOCK")


def combine(partials: Iterable[Partials], tensors: int) -> Array:
    """The sums over whole tensors, float64 [tensors, width]: one addition after the other in order of (tensor, block).

    Args:
        partials: those of all shards, in any order.
        tensors: number of tensors of the group.

    Raises:
        Invalid: PARTIALS_MISMATCH, a segment is there twice or of no tensor, or the widths differ.
    """
    parts = list(partials)
    if len({part.sums.shape[1] for part in parts}) != 1:
        raise _mismatch("must be there, all of one width")
    keys = np.concatenate([part.keys for part in parts])
    sums = np.concatenate([part.sums for part in parts])
    order = np.lexsort((keys[:, 1], keys[:, 0]))
    keys, sums = keys[order], sums[order]
    if len(keys) and (keys[0, 0] < 0 or keys[-1, 0] >= tensors):
        raise _mismatch(f"tensors must be in [0, {tensors})")
    if (np.diff(keys, axis=0) == 0).all(axis=1).any():
        raise _mismatch("a segment is there twice")
    totals = np.zeros((tensors, sums.shape[1]))
    # Unlike `sum` and `reduceat`, which add in pairs, `at` adds one after the other.
    np.add.at(totals, keys[:, 0], sums)
    return totals


def _cut(tensors: Sequence[int], blocks: Sequence[Block]) -> Iterable[Segment]:
    """The flat vector's order is that of (tensor, block) already."""
    starts = list(accumulate(tensors, initial=0))
    for at, block in enumerate(blocks):
        first, end = block.offset, block.offset + block.elements
        # Of tensors without elements that begin at the same place as others, none is met: the last one is found.
        tensor = bisect_right(starts, first) - 1
        while first < end:
            last = min(end, starts[tensor + 1])
            if last > first:
                yield Segment(tensor, block.index, at, slice(first - block.offset, last - block.offset))
            first, tensor = last, tensor + 1


def _squares(values: Array) -> float:
    """In float64, in an order that follows from the number of elements alone: not BLAS, whose threads would show."""
    return float(np.square(values, dtype=np.float64).sum())


def _mismatch(problem: str) -> Invalid:
    return Invalid(f"partial sums: {problem}", reason="PARTIALS_MISMATCH", violations={"partials": problem})
