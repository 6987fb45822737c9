"""What a way of consistency is: it takes whole pushes, applies them, and says who may read what."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from tidemill.errors import FailedPrecondition, invalid
from tidemill.parameters.definition import Definition
from tidemill.parameters.part import Part
from tidemill.parameters.rounds import Header
from tidemill.parameters.rule import Rule, run
from tidemill.parameters.segments import Partials, combine
from tidemill.tensors.blocks import BLOCK, Array, Block

FLOAT = np.dtype("<f4")
LATEST = -1
"""Asks for whatever is there, once there is something."""


def nothing() -> None:
    """Nothing is to be done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Parameters that are being read.

    Args:
        version: of all of them.
        blocks: each block of the part with its values and its own version.
        close: to be called when the reading is over, under the group's lock.
    """

    version: int
    blocks: Iterable[tuple[Block, Array, int]]
    close: Callable[[], None] = nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a pull asks for.

    Args:
        version: of the parameters, or the clock of the worker, as the way has it; `LATEST` = whatever is there.
        worker: rank of who asks; None = none of the group's workers.
    """

    version: int = LATEST
    worker: int | None = None

    def __post_init__(self) -> None:
        if self.version < LATEST:
            raise invalid("version", f"must be a version or {LATEST}, not {self.version}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What was applied: the version that came of it, and the samples in it."""

    version: int
    samples: int


class Consistency(ABC):
    """One group's parameters on one shard, in one way.

    The group's lock guards everything but `apply` and the blocks of a `Reading`: these run without it, `apply` one at a
    time. What is taken by `accept` has been checked, and belongs to this object from then on.

    Args:
        definition: of the group.
        part: its blocks on this shard.
        rule: how they change.
    """

    def __init__(self, definition: Definition, part: Part, rule: Rule) -> None:
        self.definition = definition
        self.part = part
        self.rule = rule

    def step(self, values: Array, prepare: Callable[[int, Array], AbstractContextManager[object]]) -> None:
        """Make one step, block by block: each comes into the cache once, unless the whole gradient counts first.

        Args:
            values: all elements of the part, changed in place.
            prepare: given the position of a block and memory for its gradient, puts it there; what it returns is held
                while the block changes.
        """
        blocks, rule = self.part.blocks, self.rule
        whole = np.empty(self.part.elements if rule.exchanges else min(BLOCK, self.part.elements), FLOAT)
        if rule.exchanges:
            gradients = self.part.views(whole)
            for at, gradient in enumerate(gradients):
                with prepare(at, gradient):
                    pass
            run(rule.step(self.part.views(values), gradients), self._totals)
            return
        gradients = [whole[: block.elements] for block in blocks]
        run(rule.step(self.part.views(values), gradients, lambda at: prepare(at, gradients[at])), self._totals)

    def _totals(self, partials: Partials) -> Array:
        return combine([partials], len(self.definition.tensors))

    @abstractmethod
    def load(self, values: Array) -> None:
        """Begin with these values, all elements of the part."""

    @property
    @abstractmethod
    def version(self) -> int:
        """Steps of the optimizer that were made."""

    @abstractmethod
    def clock(self, worker: int) -> int:
        """The step that the next push of a worker is for."""

    @abstractmethod
    def joins(self, header: Header) -> bool:
        """Whether a push brings something new; False for a repetition.

        Raises:
            FailedPrecondition: reason STEP_AHEAD, its step is not the next one.
        """

    @abstractmethod
    def busy(self, header: Header) -> bool:
        """Whether such a push must wait for one that is being applied before it is known what it is."""

    @abstractmethod
    def accept(self, header: Header, gradients: Array) -> bool:
        """Take a push that `joins`; whether something is to be applied now, by who has pushed this."""

    @abstractmethod
    def apply(self, header: Header) -> "Applied":
        """Apply what is due since `accept` of this push said so. Leaves nothing half done but when it raises."""

    @abstractmethod
    def done(self, header: Header) -> None:
        """`apply` has returned: let it be seen."""

    @abstractmethod
    def failed(self, header: Header) -> None:
        """`apply` has raised, and the group has ended."""

    @property
    def arrived(self) -> tuple[int, ...]:
        """Ranks whose push waits for others, in order."""
        return ()

    @abstractmethod
    def waits_for(self, wish: Wish) -> str:
        """What a pull has to wait for, in words; "" = nothing. There are values."""

    @abstractmethod
    def read(self, wish: Wish) -> Reading:
        """What is there to be read.

        Raises:
            OutOfRange: reason VERSION_GONE, it is not kept any more.
        """


def ahead(step: int, now: int, what: str) -> FailedPrecondition:
    """The refusal of a push for a step that has not come."""
    return FailedPrecondition(
        f"step {step} is ahead of {what} {now}: pull before the next push",
        reason="STEP_AHEAD",
        metadata={"step": str(step), "version": str(now)},
    )
