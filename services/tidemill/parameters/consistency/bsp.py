"""Bulk-synchronous: rounds of gradients of all workers, and the versions that they make."""

from collections.abc import Iterator, Mapping, Sequence

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
from tidemill.parameters.rounds import Contribution, Entry, Header, Mean
from tidemill.parameters.rows import Rows
from tidemill.parameters.rule import Rule
from tidemill.parameters.saved import Position
from tidemill.parameters.segments import Partials
from tidemill.parameters.sharedmemory import Arrays
from tidemill.parameters.snapshots import Snapshots
from tidemill.parameters.sums import Sums
from tidemill.tensors.blocks import BLOCK, Array, Block


class Bsp(Consistency):
    """Every worker hands in its gradients for the step that is the version; then that is one higher (Valiant 1990).

    The mean is formed in order of rank, whatever the order of arrival, and so is the same to the last bit each time. In
    order of arrival, when the group says so, gradients are added up as they come, and no more than one set of them is
    kept. What happens between two versions belongs to none, and is seen by nobody.
    """

    def __init__(self, definition: Definition, part: Part, rule: Rule) -> None:
        super().__init__(definition, part, rule)
        self._snapshots: Snapshots | None = None
        self._arrived: dict[int, Contribution] = {}
        self._closing = False
        self._chosen: tuple[int, ...] = ()
        """Who makes the round that closes; nobody = none does."""
        self._arrays = Arrays(part.elements)
        self._touched: dict[int, Mapping[int, Array]] = {}
        self._added = Added(part) if definition.consistency.arrival_order else None
        exchanges = definition.shards > 1 and rule.exchanges > 0
        self._sums = Sums(len(definition.tensors), rule.widths) if exchanges else None
        self._asked = 0

    def begin(self, values: Array, position: Position) -> None:
        """Begin with these values, which are the version of the position."""
        self._snapshots = Snapshots(values, position.version, self._arrays.new)
        if self._arrays.shared:
            self._snapshots.move()
        self._tell()

    @property
    def sums(self) -> Sums | None:
        """Those of clipping and of layer-wise optimizers, on several shards."""
        return self._sums

    def totals(self, partials: Partials) -> Array:
        """What all shards have told, or was recorded."""
        assert self._sums is not None
        turn = self.version, self._asked
        self._asked += 1
        logged = self.logged(partials)
        if logged is None:
            return self._sums.total(turn, partials)
        self._sums.keep(turn, partials)
        return logged

    def _tell(self) -> None:
        """A version can be seen."""
        self._asked = 0
        if self._sums is not None:
            self._sums.made(self.version)

    def share(self) -> None:
        """Let all versions lie in memory that workers can read; unless rounds close while some still read old ones."""
        if not self._arrays.shared and not self.definition.stragglers.drops:
            self._arrays.shared = True
            if self._snapshots is not None:
                self._snapshots.move()

    def values(self) -> Array:
        """Those of the latest version."""
        assert self._snapshots is not None
        return self._snapshots.latest.values

    def applied(self) -> tuple[int, ...]:
        """The version, for every worker."""
        return (self.version,) * self.definition.workers

    def entries(self, header: Header) -> tuple[Entry, ...]:
        """All of the round, when that closes."""
        made = [(rank, self._arrived[rank]) for rank in self._chosen]
        return tuple(Entry(rank, one.attempt, one.samples) for rank, one in made)

    def again(self, entries: Sequence[Entry], fill: Fill | None) -> None:
        """Close a round again."""
        assert self._snapshots is not None
        values: Array | None = None
        if fill is not None:
            values = self._snapshots.draft()
            np.copyto(values, self._snapshots.latest.values)
            self.step(values, fill)
        self.roll.closed(self.version, [entry.worker for entry in entries])
        self._snapshots.advance(values)
        self._tell()

    @property
    def version(self) -> int:
        """Rounds that were closed."""
        return 0 if self._snapshots is None else self._snapshots.latest.version

    @property
    def arrived(self) -> tuple[int, ...]:
        """Ranks that have handed in for the open round."""
        return tuple(sorted(self._arrived))

    def clock(self, worker: int) -> int:
        """The open round, or the next one when the worker has handed in for it."""
        return self.version + (worker in self._arrived)

    def joins(self, header: Header) -> bool:
        """Whether a push is for the open round, and not there already. Raises FailedPrecondition."""
        if header.step > self.version:
            raise ahead(header.step, self.version, "version")
        pending = self._arrived.get(header.worker)
        if header.step < self.version:
            return False
        # A later attempt takes the place of an earlier one, as long as that was not added to the others.
        return pending is None or (pending.attempt < header.attempt and self._added is None)

    def busy(self, header: Header) -> bool:
        """Whether a round closes: until then no push belongs to any."""
        return self._closing

    def accept(self, header: Header, gradients: Array, rows: Mapping[int, Rows]) -> bool:
        """Let a push wait for the others; whether it was the last one, or is to be added up now."""
        self._arrived[header.worker] = Contribution(header.attempt, header.samples, gradients, rows)
        self.roll.came(self.time())
        self._closing = self.due() or self._added is not None
        return self._closing

    def due(self) -> bool:
        """Whether the open round is to be closed now."""
        if self._closing:
            return False
        self._chosen = self.roll.chosen(self._arrived, self.time())
        self._closing = bool(self._chosen)
        return self._closing

    def apply(self, header: Header, record: Record = nothing_of) -> Applied:
        """Add up what has come; after the last push, make the next version of it."""
        assert self._snapshots is not None
        if self._added is not None:
            own = self._arrived[header.worker]
            self._added.add(own.gradients, own.samples)
            self._arrived[header.worker] = Contribution(own.attempt, own.samples, np.empty(0, np.float32))
            if not self._chosen:
                return Applied(version=self.version, samples=0)
        samples = sum(self._arrived[rank].samples for rank in self._chosen)
        self._next: Array | None = None
        if samples:
            self._next = self._step(self._snapshots.latest.values, self._snapshots.draft(), record)
        return Applied(version=self.version + 1, samples=samples)

    def _step(self, values: Array, draft: Array, record: Record) -> Array:
        mean: Mean | Added
        if self._added is not None:
            mean = self._added.take()
        else:
            mean = Mean([self._arrived[rank] for rank in self._chosen], self.part)

        touched = mean.rows() if isinstance(mean, Mean) else {}
        self._catch_up(draft, values, touched)

        def fill(at: int, gradient: Array) -> None:
            index = self.part.blocks[at].index
            mean.into(gradient, index)
            np.copyto(self.part.view(draft, index), self.part.view(values, index))

        self.step(draft, fill, record, rows=touched)
        return draft

    def _catch_up(self, draft: Array, values: Array, touched: Mapping[int, Rows]) -> None:
        """Let the draft have the tables of the latest version: it is the version before the last, where there was one.

        So of a table only the rows are copied that the last two steps have touched, and not all of it.
        """
        assert self._snapshots is not None
        held = self._snapshots.drafted
        behind = None if held is None else [self._touched.get(version) for version in range(held + 1, self.version + 1)]
        for index in self.part.widths:
            if behind is None or None in behind:
                np.copyto(self.part.view(draft, index), self.part.view(values, index))
                continue
            for changed in behind:
                if changed and index in changed:
                    rows = changed[index]
                    self.part.rows(draft, index)[rows] = self.part.rows(values, index)[rows]
        self._touched[self.version + 1] = {index: rows.indices for index, rows in touched.items()}
        self._touched.pop(self.version - 2, None)

    def done(self, header: Header) -> None:
        """Let the next version be seen, if there is one."""
        assert self._snapshots is not None
        self._closing = False
        if self._chosen:
            self.roll.closed(self.version, self._chosen)
            self._snapshots.advance(self._next)
            for contribution in self._arrived.values():
                self.pool.give(contribution.gradients)
            self._arrived, self._chosen = {}, ()
            self._tell()

    def failed(self, header: Header) -> None:
        """Let those who wait for the round look at what has become of the group."""
        self._closing = False

    def waits_for(self, wish: Wish) -> str:
        """The round before the version, when it is open."""
        if wish.version <= self.version:
            return ""
        return f"version {wish.version}, for which {self.roll.waits_for(self._arrived, self.time())}"

    def read(self, wish: Wish) -> Reading:
        """One version. Raises OutOfRange."""
        snapshots = self._snapshots
        assert snapshots is not None
        found = snapshots.take(self.version if wish.version == LATEST else wish.version)
        blocks = self._blocks(found.values, found.version, wanted(self.part, wish))
        return Reading(
            version=found.version,
            blocks=blocks,
            close=lambda: snapshots.release(found),
            memory=self._arrays.memory(found.values),
            ranks=self.roll.made_of(found.version - 1),
        )

    def _blocks(
        self, values: Array, version: int, asked: Sequence[tuple[int, Block, Array | None]]
    ) -> Iterator[tuple[Block, Array, int]]:
        for _, block, rows in asked:
            if rows is None:
                yield block, self.part.view(values, block.index), version
            else:
                yield block, self.part.rows(values, block.index)[rows].reshape(-1), version


class Added:
    """Gradients that are added up as they come, weighed by their samples."""

    def __init__(self, part: Part) -> None:
        self._part = part
        self._values: Array | None = None
        self._samples = 0

    def add(self, gradients: Array, samples: int) -> None:
        """Add mean gradients over so many samples."""
        if not samples:
            return
        self._samples += samples
        values = self._values
        if values is None:
            self._values = gradients * np.float32(samples)
            return
        spare = np.empty(BLOCK, np.float32)
        with np.errstate(over="ignore"):
            for block in self._part.blocks:
                added = spare[: block.elements]
                np.multiply(self._part.view(gradients, block.index), np.float32(samples), out=added)
                self._part.view(values, block.index)[:] += added

    def take(self) -> "Added":
        """What was added up; and begin anew."""
        taken = Added(self._part)
        taken._values, taken._samples = self._values, self._samples
        self._values, self._samples = None, 0
        return taken

    def into(self, out: Array, index: int) -> None:
        """Put the mean over all samples of the block `index` into `out`."""
        assert self._values is not None
        np.divide(self._part.view(self._values, index), np.float32(self._samples), out=out)
