"""A shard's part of the flat vector: its blocks, one after the other in one array."""

from collections.abc import Sequence
from itertools import accumulate

from tidemill.tensors.blocks import Array, Block


class Part:
    """Where the blocks of a shard lie in the shard's own array.

    Args:
        blocks: the blocks, in order of index.
    """

    def __init__(self, blocks: Sequence[Block]) -> None:
        self.blocks = tuple(blocks)
        ends = list(accumulate((block.elements for block in blocks), initial=0))
        self.elements = ends[-1]
        self._slices = {block.index: slice(ends[i], ends[i + 1]) for i, block in enumerate(blocks)}

    def __contains__(self, index: int) -> bool:
        return index in self._slices

    def view(self, values: Array, index: int) -> Array:
        """The block `index` in an array of all elements of the part."""
        return values[self._slices[index]]

    def views(self, values: Array) -> list[Array]:
        """All blocks in an array of all elements of the part, in order."""
        return [values[where] for where in self._slices.values()]
