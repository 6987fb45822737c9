"""All there is to know of one shard's part of a group between two steps."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tidemill import names
from tidemill.errors import Invalid, invalid
from tidemill.parameters.part import Part
from tidemill.parameters.staging import FLOAT, Staging
from tidemill.tensors.blocks import Array

State = Mapping[str, Sequence[Array | None]]
"""An optimizer's: name -> one array a block, of one element where that is one for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a group is.

    Args:
        version: of the group.
        steps: that its optimizer has made.
        clocks: for each worker the step that its next push is for.
        samples: whose gradients were applied.
        attempts: the latest one of each worker that was seen; empty = none was.
    """

    version: int = 0
    steps: int = 0
    clocks: tuple[int, ...] = ()
    samples: int = 0
    attempts: tuple[int, ...] = ()

    def check(self, workers: int, *, rounds: bool) -> None:
        """See that a group of so many workers can be there.

        Raises:
            Invalid: it cannot.
        """
        for name in ("version", "steps", "samples"):
            if not 0 <= getattr(self, name) < 2**62:
                raise invalid(f"position.{name}", "must not be negative")
        if len(self.clocks) != workers or any(clock < 0 for clock in self.clocks):
            raise invalid("position.clocks", f"must be {workers} numbers that are not negative, one a worker")
        if rounds and self.steps > self.version:
            raise invalid("position.steps", "must not be more than the version")
        if rounds and any(clock != self.version for clock in self.clocks):
            raise invalid("position.clocks", "must be the version for every worker: they make each step together")
        if not rounds and sum(self.clocks) != self.version:
            raise invalid("position.version", "must be the sum of the clocks: every push is a step")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Saved:
    """A group's part at a position.

    Args:
        position: how far it was.
        values: all elements of the part, float32.
        state: the optimizer's.
    """

    position: Position
    values: Array
    state: State


class Gathering:
    """Takes the parameters and the optimizer's state of a part, block by block. Used by one thread."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._values = Staging(Part(part.blocks), {})
        self._state: dict[str, dict[int, Array]] = {}
        self._blocks = {block.index: block.elements for block in part.blocks}

    def add(self, state: str, index: int, data: bytes) -> None:
        """Take a block of the state of that name; "" = of the parameters.

        Raises:
            Invalid: UNKNOWN_BLOCK, REPEATED_BLOCK, SIZE_MISMATCH or NON_FINITE.
        """
        if not state:
            self._values.add(index, data)
            return
        names.check(state, "state")
        if index not in self._blocks:
            raise _wrong(state, index, "is not on this shard", "UNKNOWN_BLOCK")
        taken = self._state.setdefault(state, {})
        if len(self._state) > MAX_STATES:
            raise invalid("state", f"must have at most {MAX_STATES} names")
        if index in taken:
            raise _wrong(state, index, "came twice", "REPEATED_BLOCK")
        if len(data) not in (FLOAT.itemsize, FLOAT.itemsize * self._blocks[index]):
            raise _wrong(state, index, f"has {len(data)} bytes", "SIZE_MISMATCH")
        values = np.frombuffer(data, FLOAT)
        if not np.isfinite(values).all():
            raise _wrong(state, index, "holds NaN or infinity", "NON_FINITE")
        taken[index] = values

    @property
    def has_state(self) -> bool:
        """Whether any state has come."""
        return bool(self._state)

    def values(self) -> Array:
        """The parameters. Raises Invalid: MISSING_BLOCKS."""
        return self._values.whole()

    def state(self, known: Iterable[str]) -> State:
        """The state: of every one of these names, and of those that came."""
        indexes = list(self._blocks)
        return {
            name: [self._state.get(name, {}).get(index) for index in indexes] for name in sorted({*known, *self._state})
        }


MAX_STATES = 16
"""Tensors of state that an optimizer may have for a block."""


def _wrong(state: str, index: int, problem: str, reason: str) -> Invalid:
    return Invalid(
        f"state {state[:64]}, block {index}: {problem}",
        reason=reason,
        metadata={"state": state[:64], "block": str(index)},
        violations={"block": problem},
    )
