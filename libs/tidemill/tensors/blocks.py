"""The flat vector of a model's parameters, and the blocks it is cut into.

The flat vector holds every tensor in row-major order, one after the other, as float32, so small tensors share blocks.
A block has at most 2^18 elements (1 MiB): the size at which gRPC streams are fastest, and a cut that keeps vectorized
optimizers on the same lanes. Blocks do not follow tensor borders: element-wise optimizers do not care.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BLOCK = 2**18
"""Most elements of a block."""
_ALIGNMENT = 1024
_AT_LEAST = 8


@dataclass(frozen=True, slots=True)
class Block:
    """A run of consecutive elements of the flat vector."""

    index: int
    offset: int
    elements: int

    @property
    def slice(self) -> slice:
        """Where it lies in the flat vector."""
        return slice(self.offset, self.offset + self.elements)


def cut(elements: int) -> list[Block]:
    """The blocks of a flat vector of `elements`: at least 8, but none of less than 1024 elements or more than allowed.

    They do not depend on the number of shards: whatever is computed block by block, the norm of all gradients for one,
    is the same to the last bit for any number, and other shards can take over whole blocks.
    """
    share = math.ceil(elements / _AT_LEAST)
    size = min(BLOCK, max(_ALIGNMENT, math.ceil(share / _ALIGNMENT) * _ALIGNMENT))
    return [Block(index, offset, min(size, elements - offset)) for index, offset in enumerate(range(0, elements, size))]


def cut_tables(shapes: Sequence[Sequence[int]], tables: Collection[int]) -> list[Block]:
    """The blocks of tensors of which some are tables: these have blocks of their own, which hold whole rows.

    Args:
        shapes: of all tensors, in the order of the flat vector.
        tables: positions of those of two dimensions that are such tables, none with a row of more than 2^18 elements.
    """
    found: list[Block] = []

    def add(offset: int, run: list[Block]) -> None:
        first = len(found)
        found.extend(Block(first + at, offset + block.offset, block.elements) for at, block in enumerate(run))

    offset = pending = 0
    for position, shape in enumerate(shapes):
        elements = math.prod(shape)
        if position not in tables:
            pending += elements
            continue
        add(offset, cut(pending))
        offset, pending = offset + pending, 0
        size = BLOCK // shape[1] * shape[1]
        add(offset, [Block(0, first, min(size, elements - first)) for first in range(0, elements, size)])
        offset += elements
    add(offset, cut(pending))
    return found


def assign(blocks: Sequence[Block], shards: int) -> list[list[Block]]:
    """For each shard its blocks in order of index: the largest first to whoever has least (ties: the lowest shard)."""
    loads = [0] * shards
    parts: list[list[Block]] = [[] for _ in range(shards)]
    for block in sorted(blocks, key=lambda b: (-b.elements, b.index)):
        shard = loads.index(min(loads))
        loads[shard] += block.elements
        parts[shard].append(block)
    return [sorted(part, key=lambda b: b.index) for part in parts]


def total(shapes: Iterable[Sequence[int]]) -> int:
    """Number of elements of all tensors of these shapes."""
    return sum(math.prod(shape) for shape in shapes)


def views(flat: Array, shapes: Sequence[Sequence[int]]) -> list[Array]:
    """The tensors in a flat vector, as views of it."""
    out = []
    position = 0
    for shape in shapes:
        size = math.prod(shape)
        out.append(flat[position : position + size].reshape(tuple(shape)))
        position += size
    return out
