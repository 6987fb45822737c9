"""Parameters that change under their readers: every block is whole, and has a version of its own."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from tidemill.parameters.consistency.base import (
    LATEST,
    Applied,
    Consistency,
    Fill,
    Reading,
    Record,
    Wish,
    ahead,
    nothing_of,
    wanted,
)
from tidemill.parameters.definition import Definition
from tidemill.parameters.part import Part
from tidemill.parameters.rounds import Entry, Header
from tidemill.parameters.rows import Rows
from tidemill.parameters.rule import Rule
from tidemill.parameters.saved import Position
from tidemill.parameters.segments import Partials
from tidemill.tensors.blocks import Array, Block


class Live(Consistency):
    """Every push is a step of the optimizer by itself, in order of arrival; a worker never waits for its own alone.

    Args:
        definition, part, rule: as for every way.
        staleness: most steps between a reader's clock and the slowest worker's; None = any number.
    """

    def __init__(self, definition: Definition, part: Part, rule: Rule, staleness: int | None) -> None:
        super().__init__(definition, part, rule)
        self._staleness = staleness
        self._values: Array | None = None
        self._steps = 0
        self._clocks = [0] * definition.workers
        self._applied = [0] * definition.workers
        self._pushes: dict[int, tuple[Array, Mapping[int, Rows]]] = {}
        self._locks = [threading.Lock() for _ in part.blocks]
        self._versions = [0] * len(part.blocks)
        self._squares = 0.0
        self._held: int | None = None

    def begin(self, values: Array, position: Position) -> None:
        """Begin with these values."""
        self._values = values
        self._steps = position.version
        self._clocks = list(position.clocks or self._clocks)
        self._applied = list(self._clocks)
        self._versions = [position.steps] * len(self._versions)

    def values(self) -> Array:
        """All of them, as they are."""
        assert self._values is not None
        return self._values

    def applied(self) -> tuple[int, ...]:
        """For each worker the number of its pushes in the values."""
        return tuple(self._applied)

    def entries(self, header: Header) -> tuple[Entry, ...]:
        """The push alone."""
        return (Entry(header.worker, header.attempt, header.samples),)

    def again(self, entries: Sequence[Entry], fill: Fill | None) -> None:
        """Apply a push again."""
        (entry,) = entries
        if fill is not None:
            self._change(fill, nothing_of)
        self._applied[entry.worker] += 1
        self._clocks[entry.worker] += 1
        self._steps += 1

    @property
    def version(self) -> int:
        """Steps of the optimizer that were made."""
        return self._steps

    def clock(self, worker: int) -> int:
        """Pushes of the worker that were applied."""
        return self._clocks[worker]

    def joins(self, header: Header) -> bool:
        """Whether a push is for the worker's next step. Raises FailedPrecondition."""
        clock = self._clocks[header.worker]
        if header.step > clock:
            raise ahead(header.step, clock, "the worker's clock")
        return header.step == clock

    def busy(self, header: Header) -> bool:
        """Whether a push of the same worker is being applied."""
        return header.worker in self._pushes

    def accept(self, header: Header, gradients: Array, rows: Mapping[int, Rows]) -> bool:
        """Take a push: it is to be applied now."""
        self._pushes[header.worker] = gradients, rows
        return True

    def apply(self, header: Header, record: Record = nothing_of) -> Applied:
        """Make a step, one block after the other."""
        gradients, rows = self._pushes[header.worker]
        self._squares = header.squares
        if header.samples:

            def fill(at: int, gradient: Array) -> None:
                # A copy: steps overwrite gradients, and in shared memory the worker may be writing them again.
                np.copyto(gradient, self.part.dense.view(gradients, self.part.blocks[at].index))

            self._change(fill, record, rows)
        self._applied[header.worker] += 1
        return Applied(version=sum(self._applied), samples=header.samples)

    def totals(self, partials: Partials) -> Array:
        """The sum of squares of the whole gradient, as who has pushed it has said, or was recorded."""
        logged = self.logged(partials)
        if logged is not None:
            return logged
        totals = np.zeros((len(self.definition.tensors), partials.sums.shape[1]))
        totals[0] = self._squares
        return totals

    def _change(self, fill: Fill, record: Record, rows: Mapping[int, Rows] | None = None) -> None:
        assert self._values is not None

        @contextmanager
        def locked(at: int) -> Iterator[None]:
            with self._locks[at]:
                yield
                self._versions[at] += 1

        self.step(self._values, fill, record, locked, rows)

    def done(self, header: Header) -> None:
        """Let the worker's clock be seen to go on."""
        gradients, _ = self._pushes.pop(header.worker)
        self.pool.give(gradients)
        self._clocks[header.worker] += 1
        self._steps += 1

    def failed(self, header: Header) -> None:
        """Let the worker's next push look at what has become of the group."""
        self._pushes.pop(header.worker, None)

    def hold(self, least: int) -> int:
        """The step after the latest one that any worker may have begun."""
        self._held = max(least, max(self._clocks) + 1 if self._held is None else self._held)
        return self._held

    def waits_for(self, wish: Wish) -> str:
        """The worker's own push, the slowest worker, or that the group goes on elsewhere."""
        if wish.worker is None or wish.version == LATEST:
            return ""
        if self._clocks[wish.worker] < wish.version:
            return f"its own push for step {wish.version - 1}"
        if self._held is not None and wish.worker and wish.version >= self._held:
            return "its job's move to other workers or shards"
        if self._staleness is None:
            return ""
        slow = [rank for rank, clock in enumerate(self._clocks) if clock < wish.version - self._staleness]
        if not slow:
            return ""
        named = ", ".join(f"{rank} (at {self._clocks[rank]})" for rank in slow)
        return f"step {wish.version - self._staleness} of worker{'s' * (len(slow) > 1)} {named}"

    def read(self, wish: Wish) -> Reading:
        """All blocks, each as it is when its turn comes."""
        assert self._values is not None
        return Reading(version=self._steps, blocks=self._blocks(self._values, wanted(self.part, wish)))

    def _blocks(
        self, values: Array, asked: Sequence[tuple[int, Block, Array | None]]
    ) -> Iterator[tuple[Block, Array, int]]:
        for position, block, rows in asked:
            # A copy: whoever reads may be slow, and the next push must not wait for that.
            with self._locks[position]:
                version = self._versions[position]
                if rows is None:
                    copy = self.part.view(values, block.index).copy()
                else:
                    copy = self.part.rows(values, block.index)[rows].reshape(-1)
            yield block, copy, version
