"""A group of parameters between two steps, to go on from elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass

from tidemill.tensors.blocks import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupState:
    """All there is to know of a group, on however many shards.

    Args:
        version: of the group.
        steps: that its optimizer has made.
        clocks: for each worker the step that its next push is for.
        samples: whose gradients were applied.
        flat: the parameters, one tensor after the other, float32.
        state: the optimizer's: name -> index of the block -> values, one alone where that is one for the block. Blocks
            are cut alike for any number of shards.
    """

    version: int
    steps: int
    clocks: tuple[int, ...]
    samples: int
    flat: Array
    state: Mapping[str, Mapping[int, Array]]
