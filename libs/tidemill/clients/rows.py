"""Where the rows of sparse tensors lie among the blocks of a group."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from tidemill.errors import invalid
from tidemill.tensors.blocks import Array, Block

ROW = np.dtype("<u4")
FLOAT = np.dtype("<f4")


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Rows that lie in one block."""

    block: int
    """Its index."""
    rows: Array
    """Their numbers within the block."""
    table: str
    where: slice
    """Which they are among those that were asked for."""


class Tables:
    """The sparse tensors of a group, and where all others are in a vector of those alone.

    Args:
        tensors: name and shape of each tensor of the group, in order.
        blocks: all blocks of the group.
        sparse: positions of the sparse tensors.
    """

    def __init__(
        self, tensors: Sequence[tuple[str, tuple[int, ...]]], blocks: Sequence[Block], sparse: Sequence[int]
    ) -> None:
        starts = list(accumulate((math.prod(shape) for _, shape in tensors), initial=0))
        ordered = sorted(blocks, key=lambda block: block.index)
        self._shapes = {tensors[at][0]: tensors[at][1] for at in sparse}
        self._blocks: dict[str, list[Block]] = {}
        self._first: dict[str, list[int]] = {}
        of_tables = set()
        for at in sparse:
            name, shape = tensors[at]
            own = [block for block in ordered if starts[at] <= block.offset < starts[at + 1]]
            self._blocks[name] = own
            self._first[name] = [(block.offset - starts[at]) // shape[1] for block in own]
            of_tables |= {block.index for block in own}
        self.dense: dict[int, slice] = {}
        """Where each block of the other tensors is in the vector of these."""
        end = 0
        for block in ordered:
            if block.index not in of_tables:
                self.dense[block.index] = slice(end, end + block.elements)
                end += block.elements
        self.elements = end
        """Length of that vector."""

    def width(self, name: str) -> int:
        """Elements of a row. Raises Invalid: there is no such sparse tensor."""
        if name not in self._shapes:
            raise invalid("rows", f"{name[:40]!r} is no sparse tensor of the group")
        return self._shapes[name][1]

    def check_dense(self, values: Array) -> Array:
        """The vector of all other tensors. Raises Invalid: it is not of their length."""
        if values.shape != (self.elements,):
            raise invalid("dense", f"must be a vector of {self.elements} elements, not of shape {list(values.shape)}")
        return np.ascontiguousarray(values, FLOAT)

    def places(self, rows: Mapping[str, Array]) -> list[Place]:
        """Where rows lie, by their numbers, in order of block.

        Raises:
            Invalid: there are no such rows, or they are not ascending.
        """
        found = []
        for name, numbers in rows.items():
            self.width(name)
            if numbers.ndim != 1 or numbers.dtype != np.int64 or (np.diff(numbers) <= 0).any():
                raise invalid(f"rows.{name[:40]}", "must be int64, ascending, each once")
            if len(numbers) and not 0 <= numbers[0] <= numbers[-1] < self._shapes[name][0]:
                raise invalid(f"rows.{name[:40]}", f"must be in [0, {self._shapes[name][0]})")
            first, at = self._first[name], 0
            while at < len(numbers):
                block = bisect_right(first, numbers[at]) - 1
                end = len(numbers)
                if block + 1 < len(first):
                    end = int(np.searchsorted(numbers, first[block + 1]))
                inside = (numbers[at:end] - first[block]).astype(ROW)
                found.append(Place(self._blocks[name][block].index, inside, name, slice(at, end)))
                at = end
        return sorted(found, key=lambda place: place.block)

    def split(self, rows: Mapping[str, tuple[Array, Array]]) -> dict[int, tuple[Array, Array]]:
        """Numbers within the block and gradients of touched rows, by index of the block.

        Raises:
            Invalid: as `places`; or the gradients are not float32 [n, width].
        """
        for name, (numbers, gradients) in rows.items():
            if gradients.dtype != np.float32 or gradients.shape != (len(numbers), self.width(name)):
                raise invalid(f"rows.{name[:40]}", f"needs gradients float32 [{len(numbers)}, {self.width(name)}]")
        places = self.places({name: numbers for name, (numbers, _) in rows.items()})
        return {place.block: (place.rows, rows[place.table][1][place.where]) for place in places}
