"""A shard's part of the flat vector: its blocks, one after the other in one array."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

from tidemill.tensors.blocks import Array, Block


class Part:
    """Where the blocks of a shard lie in the shard's own array.

    Args:
        blocks: the blocks, in order of index.
        widths: elements of a row, by index, of those blocks that are rows of a table.
    """

    def __init__(self, blocks: Sequence[Block], widths: Mapping[int, int] | None = None) -> None:
        self.blocks = tuple(blocks)
        self.widths = dict(widths or {})
        ends = list(accumulate((block.elements for block in blocks), initial=0))
        self.elements = ends[-1]
        self._slices = {block.index: slice(ends[i], ends[i + 1]) for i, block in enumerate(blocks)}

        dense = [block for block in blocks if block.index not in self.widths]
        self.dense = Part(dense) if self.widths else self
        """The part without tables, whose gradients come whole."""

    def rows(self, values: Array, index: int) -> Array:
        """The block `index` of a table, [rows, width], in an array of all elements of the part."""
        return self.view(values, index).reshape(-1, self.widths[index])

    def __contains__(self, index: int) -> bool:
        return index in self._slices

    def elements_of(self, index: int) -> int:
        """Length of the block `index`."""
        where = self._slices[index]
        return int(where.stop - where.start)

    def view(self, values: Array, index: int) -> Array:
        """The block `index` in an array of all elements of the part."""
        return values[self._slices[index]]

    def views(self, values: Array) -> list[Array]:
        """All blocks in an array of all elements of the part, in order."""
        return [values[where] for where in self._slices.values()]
