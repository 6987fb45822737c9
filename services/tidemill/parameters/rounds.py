"""What workers hand in for a step, and the mean of it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tidemill.errors import invalid
from tidemill.parameters.part import Part
from tidemill.tensors.blocks import Array

MAX_SAMPLES = 2**40


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """Who hands in gradients, and for which step.

    Raises:
        Invalid: a number is out of range.
    """

    worker: int
    step: int
    attempt: int
    samples: int

    def __post_init__(self) -> None:
        for field in ("step", "attempt"):
            if getattr(self, field) < 0:
                raise invalid(f"header.{field}", f"must not be negative, not {getattr(self, field)}")
        if not 0 <= self.samples <= MAX_SAMPLES:
            raise invalid("header.samples", f"must be in [0, 2^40], not {self.samples}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a push."""

    duplicate: bool
    """Whether it was a repetition and changed nothing."""
    version: int
    """Version of the group afterwards."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one worker has handed in for the open round."""

    attempt: int
    samples: int
    gradients: Array
    """Mean gradients over the worker's samples, all blocks of the part; of any size when there are no samples."""


def mean(contributions: Iterable[Contribution], part: Part) -> Array | None:
    """The mean gradients over all samples of a round; None when there are none. Overwrites the contributions.

    sum(samples_r / samples * g_r) is added up in the order given, one rounding after the other: the result depends on
    neither the order of arrival nor on where the vector is cut, and with one worker it is that worker's to the bit.
    """
    weighing = [contribution for contribution in contributions if contribution.samples]
    if not weighing:
        return None
    samples = sum(contribution.samples for contribution in weighing)
    total = weighing[0].gradients
    if len(weighing) == 1:
        return total
    # Block by block: a block fits into the cache, the vector does not.
    with np.errstate(over="ignore"):
        for block in part.blocks:
            sums = part.view(total, block.index)
            sums *= np.float32(weighing[0].samples / samples)
            for contribution in weighing[1:]:
                gradients = part.view(contribution.gradients, block.index)
                gradients *= np.float32(contribution.samples / samples)
                sums += gradients
    return total
