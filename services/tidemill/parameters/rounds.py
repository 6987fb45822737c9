"""What workers hand in for a step, and the mean of it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tidemill.errors import invalid
from tidemill.parameters.part import Part
from tidemill.parameters.rows import Rows
from tidemill.parameters.rows import mean as mean_of_rows
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
    shared: bool = False
    """Whether the gradients lie in memory that the worker shares."""
    codec: str = ""
    """How their blocks are encoded; "" = not at all."""
    codec_parameters: Mapping[str, Any] = field(default_factory=dict)
    """Of the codec."""

    term: int = 0
    """How often a copy of the shard was given up, as far as the worker knows."""
    has_end: bool = False
    """Whether it counts only with a last message that says so."""
    squares: float = 0.0
    """Sum of squares of the gradients on all shards, where a push is a step by itself that clips them."""

    def __post_init__(self) -> None:
        for name in ("step", "attempt", "term"):
            if getattr(self, name) < 0:
                raise invalid(f"header.{name}", f"must not be negative, not {getattr(self, name)}")
        if not 0 <= self.samples <= MAX_SAMPLES:
            raise invalid("header.samples", f"must be in [0, 2^40], not {self.samples}")
        if not 0 <= self.squares < math.inf:
            raise invalid("header.squares", "must be a sum of squares")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a push."""

    duplicate: bool
    """Whether it was a repetition and changed nothing."""
    version: int
    """Version of the group afterwards."""
    term: int = 0
    """The highest one that a worker has told."""
    dropped: bool = False
    """Whether the round had closed without it."""
    ranks: tuple[int, ...] = ()
    """Who has made the round of its step, where some may be dropped and it was closed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A push as a step remembers it."""

    worker: int
    attempt: int
    samples: int


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one worker has handed in for the open round."""

    attempt: int
    samples: int
    gradients: Array
    """Mean gradients over the worker's samples, all dense blocks; of any size when there are no samples."""
    rows: Mapping[int, Rows] = field(default_factory=dict)
    """Those of the touched rows of tables, by index of the block."""


class Mean:
    """The mean gradients over all samples of a round.

    sum(samples_r / samples * g_r) is added up in the order given, one rounding after the other: the result depends on
    neither the order of arrival nor on where the vector is cut, and with one worker it is that worker's to the bit. The
    contributions are only read: their workers may be writing the same once more.

    Args:
        contributions: in order of rank.
        part: whose dense blocks they are of.
    """

    def __init__(self, contributions: Iterable[Contribution], part: Part) -> None:
        weighing = [contribution for contribution in contributions if contribution.samples]
        part, self._whole = part.dense, part
        self._tables = [(one.samples, one.rows) for one in weighing]
        self.samples = sum(contribution.samples for contribution in weighing)
        """Of the round; without any there is no mean."""
        self._part = part
        self._weighing = [(one.gradients, np.float32(one.samples / self.samples)) for one in weighing]

    def rows(self) -> dict[int, Rows]:
        """The mean of all touched rows, by index of the block."""
        found = {}
        for index in sorted({index for _, rows in self._tables for index in rows}):
            none = Rows(np.empty(0, np.int64), np.empty((0, self._whole.widths[index]), np.float32))
            found[index] = mean_of_rows([(samples, rows.get(index, none)) for samples, rows in self._tables])
        return found

    def into(self, out: Array, index: int) -> None:
        """Put the mean of the block `index` into `out`. A block fits into the cache, the vector does not."""
        (first, weight), *others = self._weighing
        if not others:
            np.copyto(out, self._part.view(first, index))
            return
        spare = np.empty_like(out)  # each thread's own
        with np.errstate(over="ignore"):
            np.multiply(self._part.view(first, index), weight, out=out)
            for gradients, weight in others:
                np.multiply(self._part.view(gradients, index), weight, out=spare)
                out += spare
