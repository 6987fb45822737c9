"""When a batch is closed, with which calls, and why."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tidemill.inference.configuration import DynamicBatching
from tidemill.inference.scheduling.queue import Entry, Queue


@dataclass(frozen=True, slots=True)
class Batch:
    """Calls that run together.

    Args:
        entries: at least one.
        closed: "full": no more rows fit, or the next call's do not; "preferred": it has a preferred size; "delay": its
            oldest call has waited for as long as it may; "idle": nothing else waited that fits, and nobody wants to
            wait for more.
    """

    entries: Sequence[Entry]
    closed: str


class Closing:
    """Makes batches of a queue. Not safe to use from several threads at a time.

    The oldest call of the most urgent level decides which form is next; calls of the same form fill the batch, level
    after level, and within a level in order. A call whose rows do not fit closes the batch: none overtakes it.

    Args:
        queue: of which.
        dynamic: sizes and delay.
        largest: most rows of a batch.
    """

    def __init__(self, queue: Queue, dynamic: DynamicBatching, largest: int) -> None:
        self._queue = queue
        self._preferred = frozenset(size for size in dynamic.preferred if size <= largest)
        self._delay = int(dynamic.delay * 1e9)
        self._largest = largest
        self.least = min(self._preferred | {largest}) if self._delay else 0
        """Rows that must wait for a batch to be due before its delay."""
        self.wake: int | None = None
        """When the next batch will be due, as far as it was known when none was."""
        self.gone: list[Entry] = []
        """Entries found to be at their limit, or without a caller: they wait no more, and are to be answered."""

    def next(self, now: int) -> Batch | None:
        """Take the batch out that is due now; None when there is none, see `wake`."""
        batch = self._find(now)
        if batch is not None:
            for entry in batch.entries:
                self._queue.remove(entry)
        return batch

    def due(self, now: int) -> bool:
        """Whether there is one; see `wake` when there is none."""
        return self._find(now) is not None

    def _find(self, now: int) -> Batch | None:
        self.wake = None
        while (lane := self._queue.first(now)) is not None:
            for form in lane.forms():
                entries, full = self._gather(self._queue.of(form), now)
                batch = self._closed(entries, full, now)
                if batch is not None:
                    return batch
            if lane:
                return None
        return None

    def take_gone(self) -> Sequence[Entry]:
        """The entries in `gone`, which is empty then."""
        if not self.gone:
            return ()
        gone, self.gone = self.gone, []
        return gone

    def _gather(self, waiting: Iterable[Entry], now: int) -> tuple[list[Entry], bool]:
        """Those that fit, and whether no more do."""
        entries: list[Entry] = []
        dead: list[Entry] = []
        rows, full = 0, False
        for entry in waiting:
            if (entry.limit is not None and entry.limit <= now) or not entry.call.alive():
                dead.append(entry)
                continue
            if rows + entry.call.rows > self._largest:
                full = True
                break
            entries.append(entry)
            rows += entry.call.rows
            if rows == self._largest:
                full = True
                break
        for entry in dead:
            self._queue.remove(entry)
        self.gone += dead
        return entries, full

    def _closed(self, entries: list[Entry], full: bool, now: int) -> Batch | None:
        if not entries:
            return None
        if self._preferred and (count := self._prefix(entries)):
            rows = sum(entry.call.rows for entry in entries[:count])
            return Batch(entries[:count], "full" if rows == self._largest else "preferred")
        if full:
            return Batch(entries, "full")
        if not self._delay:
            return Batch(entries, "idle")
        due = min(entry.call.arrived for entry in entries) + self._delay
        if due <= now:
            return Batch(entries, "delay")
        self.wake = due if self.wake is None else min(self.wake, due)
        return None

    def _prefix(self, entries: list[Entry]) -> int:
        """How many entries make the largest preferred size."""
        rows = best = 0
        for count, entry in enumerate(entries, 1):
            rows += entry.call.rows
            if rows in self._preferred:
                best = count
        return best
