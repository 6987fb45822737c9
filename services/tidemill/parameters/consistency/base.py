"""What a way of consistency is: it takes whole pushes, applies them, and says who may read what."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np

from tidemill.errors import FailedPrecondition, invalid
from tidemill.parameters.definition import Definition
from tidemill.parameters.lanes import ALONE
from tidemill.parameters.part import Part
from tidemill.parameters.pool import Pool
from tidemill.parameters.rounds import Entry, Header
from tidemill.parameters.rows import Rows
from tidemill.parameters.rule import Guard, Rule, run
from tidemill.parameters.saved import Position, Saved
from tidemill.parameters.segments import Partials, combine
from tidemill.parameters.sharedmemory import Memory
from tidemill.parameters.stragglers import Roll
from tidemill.parameters.sums import Sums
from tidemill.tensors.blocks import BLOCK, Array, Block

FLOAT = np.dtype("<f4")
LATEST = -1
"""Asks for whatever is there, once there is something."""


Record = Callable[[Array], None]
Fill = Callable[[int, Array], None]


def nothing() -> None:
    """Nothing is to be done."""


def nothing_of(_: Array) -> None:
    """Nothing is to be kept of it."""


def unguarded(_: int) -> AbstractContextManager[object]:
    """Nobody else looks at the values that change."""
    return nullcontext()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Parameters that are being read.

    Args:
        version: of all of them.
        blocks: each block of the part with its values and its own version.
        close: to be called when the reading is over, under the group's lock.
        memory: where all of it lies, if workers can read it there.
        ranks: whose gradients it was made of, where some may be dropped.
    """

    version: int
    blocks: Iterable[tuple[Block, Array, int]]
    close: Callable[[], None] = nothing
    memory: Memory | None = None
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a pull asks for.

    Args:
        version: of the parameters, or the clock of the worker, as the way has it; `LATEST` = whatever is there.
        worker: rank of who asks; None = none of the group's workers.
        rows: of tables, the numbers of the rows that are wanted, by index of the block; None = all of them.
    """

    version: int = LATEST
    worker: int | None = None
    rows: Mapping[int, Array] | None = None

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
        self.pool = Pool(part.dense.elements, definition.workers)
        """Where gradients that come are gathered."""
        self.lanes = ALONE
        """Make steps; others may be given before the first."""
        self.tail = 2 * len(definition.tensors) * sum(rule.widths) if definition.shards > 1 else 0
        """Float32 that the totals of one step are as long as, which are recorded after its gradients."""
        self._logged: Array | None = None
        self.time: Callable[[], float] = time.monotonic
        """Tells how late workers are; another one may be given before the first step."""
        self.roll = Roll(definition.stragglers, definition.workers, decides=definition.shard == 0)
        """Who makes which round, where there are rounds."""

    def step(
        self,
        values: Array,
        fill: Fill,
        record: Record = nothing_of,
        guard: Guard = unguarded,
        rows: Mapping[int, Rows] | None = None,
    ) -> None:
        """Make one step, block by block: each comes into the cache once, unless the whole gradient counts first.

        Args:
            values: all elements of the part, changed in place.
            fill: given the position of a block and memory for its gradient, puts it there.
            record: given the gradient of each block, in order, and then the totals over all shards, float64.
            guard: held while the block at a position changes.
            rows: the gradients of rows, by index of the block; `fill` and `record` are for all other blocks.
        """
        rule, dense = self.rule, self.part.dense
        # What is recorded comes in order.
        lanes = self.lanes if record is nothing_of else ALONE
        size = min(BLOCK, dense.elements)
        whole = np.empty(dense.elements if rule.exchanges else lanes.count * size, FLOAT)
        gradients: list[Array | Rows] = []
        for at, block in enumerate(self.part.blocks):
            if (width := self.part.widths.get(block.index)) is not None:
                none = Rows(np.empty(0, np.int64), np.empty((0, width), FLOAT))
                gradients.append((rows or {}).get(block.index, none))
            elif rule.exchanges:
                gradient = dense.view(whole, block.index)
                fill(at, gradient)
                record(gradient)
                gradients.append(gradient)
            else:
                start = at % lanes.count * size
                gradients.append(whole[start : start + block.elements])
        if rule.exchanges:
            run(rule.step(self.part.views(values), gradients, guard), partial(self._totals, record))
            return

        @contextmanager
        def filled(at: int) -> Iterator[None]:
            gradient = gradients[at]
            if not isinstance(gradient, Rows):
                fill(at, gradient)
                record(gradient)
            with guard(at):
                yield

        run(rule.step(self.part.views(values), gradients, filled, lanes), partial(self._totals, record))

    def _totals(self, record: Record, partials: Partials) -> Array:
        if self.definition.shards == 1:
            return combine([partials], len(self.definition.tensors))
        totals = self.totals(partials)
        record(totals.reshape(-1))
        return totals

    @property
    def sums(self) -> Sums | None:
        """Where this shard and the others tell each other their sums, when a step of all together needs them."""
        return None

    @abstractmethod
    def totals(self, partials: Partials) -> Array:
        """The sums over all shards, float64 [tensors, width], of which `partials` are this one's."""

    def logged(self, partials: Partials) -> Array | None:
        """The totals that were recorded, of a step that is made again."""
        if self._logged is None:
            return None
        size = len(self.definition.tensors) * partials.sums.shape[1]
        found, self._logged = self._logged[:size], self._logged[size:]
        return found.reshape(-1, partials.sums.shape[1])

    def hold(self, least: int) -> int:
        """The step, later than all that were begun, for which only rank 0 is given parameters from now on.

        Raises:
            FailedPrecondition: reason NO_HOLD, nobody begins a step before rank 0 has finished the one before.
        """
        raise FailedPrecondition("in rounds nobody passes a step without rank 0", reason="NO_HOLD")

    def share(self) -> None:  # noqa: B027 - what changes under its readers is not shared
        """Let the parameters lie where workers can read them, if they stay as they are while anybody reads.

        Raises:
            Exhausted, FailedPrecondition: as `sharedmemory.Memory`.
        """

    def restore(self, saved: Saved) -> None:
        """Begin with what was saved, of a group like this one.

        Raises:
            Invalid: STATE_MISMATCH, it is not the state of this optimizer; nothing has changed.
        """
        if saved.position.steps or saved.state:
            self.rule.restore(saved.state, saved.position.steps)
        self.begin(saved.values, saved.position)

    @abstractmethod
    def begin(self, values: Array, position: Position) -> None:
        """Begin with these values, all elements of the part, and from there."""

    def saved(self, attempts: Sequence[int], samples: int, *, parameters: bool = True) -> Saved:
        """All there is to know after the last step, copied; not while one is made.

        Args:
            attempts: the latest one of each worker.
            samples: whose gradients were applied.
            parameters: whether their values are wanted, too.
        """
        clocks = self.applied()
        position = Position(
            version=clocks[0] if self.definition.consistency.rounds else sum(clocks),
            steps=self.rule.steps,
            clocks=clocks,
            samples=samples,
            attempts=tuple(attempts),
        )
        values = self.values()[: None if parameters else 0].copy()
        return Saved(position=position, values=values, state=self.rule.state())

    @abstractmethod
    def values(self) -> Array:
        """All elements after the last step."""

    @abstractmethod
    def applied(self) -> tuple[int, ...]:
        """For each worker the step after the last one of its that was applied, whether that is to be seen or not."""

    @abstractmethod
    def entries(self, header: Header) -> tuple[Entry, ...]:
        """What the step is made of that `apply` will make for this push; empty = it will make none."""

    def replay(self, entries: Sequence[Entry], gradient: Array | None) -> None:
        """Make a step again that was made of these, with this mean gradient; None = there were no samples.

        The gradient of all elements is followed by the totals, as they were recorded.
        """

        def fill(at: int, out: Array) -> None:
            assert gradient is not None
            np.copyto(out, self.part.view(gradient, self.part.blocks[at].index))

        if gradient is not None and self.tail:
            self._logged = np.frombuffer(gradient[self.part.elements :].tobytes(), "<f8")
        self.again(entries, None if gradient is None else fill)
        self._logged = None

    @abstractmethod
    def again(self, entries: Sequence[Entry], fill: Fill | None) -> None:
        """Make such a step, whose gradients `fill` gives as for `step`, and let it be seen."""

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
    def accept(self, header: Header, gradients: Array, rows: Mapping[int, Rows]) -> bool:
        """Take a push that `joins`; whether something is to be applied now, by who has pushed this."""

    @abstractmethod
    def apply(self, header: Header, record: Record = nothing_of) -> "Applied":
        """Apply what is due since `accept` of this push said so. Leaves nothing half done but when it raises.

        Args:
            header: of the push.
            record: given the gradient of each block that the step is made with, in order.
        """

    @abstractmethod
    def done(self, header: Header) -> None:
        """`apply` has returned: let it be seen."""

    @abstractmethod
    def failed(self, header: Header) -> None:
        """`apply` has raised, and the group has ended."""

    def due(self) -> bool:
        """Whether something is to be applied now, by who asks, without another push."""
        return False

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


def wanted(part: Part, wish: Wish) -> list[tuple[int, Block, Array | None]]:
    """The blocks that a wish is for, with their positions: of tables with the rows, None = all.

    Raises:
        Invalid: there are no such rows.
    """
    if wish.rows is None:
        return [(at, block, None) for at, block in enumerate(part.blocks)]
    for index, rows in wish.rows.items():
        if index not in part.widths:
            raise invalid("rows.block", f"{index} is not of a table on this shard", reason="UNKNOWN_BLOCK")
        if len(rows) and rows.max() >= part.elements_of(index) // part.widths[index]:
            raise invalid("rows.rows", f"block {index} has no row {rows.max()}", reason="BAD_ROWS")
    return [
        (at, block, wish.rows.get(block.index))
        for at, block in enumerate(part.blocks)
        if block.index not in part.widths or block.index in wish.rows
    ]


def ahead(step: int, now: int, what: str) -> FailedPrecondition:
    """The refusal of a push for a step that has not come."""
    return FailedPrecondition(
        f"step {step} is ahead of {what} {now}: pull before the next push",
        reason="STEP_AHEAD",
        metadata={"step": str(step), "version": str(now)},
    )
