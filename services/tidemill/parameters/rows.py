"""Gradients of some rows of a table only."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidemill.errors import invalid
from tidemill.tensors.blocks import Array


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The gradients of the touched rows of one block, which holds whole rows of one table.

    Args:
        indices: numbers of the rows within the block, int64 [n], ascending, each once.
        gradients: float32 [n, width].

    Raises:
        Invalid: they do not fit together.
    """

    indices: Array
    gradients: Array

    def __post_init__(self) -> None:
        indices, gradients = self.indices, self.gradients
        if indices.dtype != np.int64 or indices.ndim != 1 or gradients.dtype != np.float32 or gradients.ndim != 2:
            raise invalid("rows", "must be int64 indices [n] with float32 gradients [n, width]")
        if len(indices) != len(gradients) or gradients.shape[1] < 1:
            raise invalid("rows.gradients", f"must be [{len(indices)}, width], not {gradients.shape}")
        if len(indices) and (indices[0] < 0 or (np.diff(indices) <= 0).any()):
            raise invalid("rows.indices", "must be ascending from 0, each once")

    @property
    def width(self) -> int:
        """Elements of a row."""
        return int(self.gradients.shape[1])

    def check(self, elements: int) -> None:
        """See that the rows are rows of a block of `elements`.

        Raises:
            Invalid: they are not.
        """
        if elements % self.width:
            raise invalid("rows.gradients", f"a block of {elements} elements has no rows of {self.width}")
        if len(self.indices) and self.indices[-1] >= elements // self.width:
            raise invalid("rows.indices", f"must be below {elements // self.width}, not {self.indices[-1]}")


def mean(contributions: Sequence[tuple[int, Rows]]) -> Rows:
    """The mean gradients over all samples, of every row that anybody has touched.

    What a worker has not touched has gradient zero there. Added up in the order given, one rounding after the other:
    to the bit what `rounds.mean` makes of the same gradients with zeros filled in.

    Args:
        contributions: number of samples and mean gradients of each worker that has any, all of one width; at least one.
    """
    if len(contributions) == 1:
        return contributions[0][1]
    samples = sum(count for count, _ in contributions)
    touched = np.unique(np.concatenate([rows.indices for _, rows in contributions]))
    total = np.zeros((len(touched), contributions[0][1].width), np.float32)
    with np.errstate(over="ignore"):
        for count, rows in contributions:
            total[np.searchsorted(touched, rows.indices)] += rows.gradients * np.float32(count / samples)
    return Rows(touched, total)
