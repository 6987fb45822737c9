"""A parameter shard, which can have a planted fault: its first argument, empty = none."""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from tidemill.parameters.__main__ import main
from tidemill.parameters.consistency.base import Consistency, Record
from tidemill.parameters.consistency.live import Live
from tidemill.parameters.durability.wal import Wal
from tidemill.parameters.group import Group
from tidemill.parameters.rounds import Entry, Header, Outcome
from tidemill.tensors.blocks import Array

LATE = 3
"""Steps for which the log lags behind the acknowledgements."""


def acknowledges_early() -> None:
    """Log a step only when the next ones have been acknowledged."""
    record = Wal.record
    pending: WeakKeyDictionary[Wal, deque[tuple[Sequence[Entry], int, int, list[Array]]]] = WeakKeyDictionary()

    @contextmanager
    def late(self: Wal, entries: Sequence[Entry], version: int, elements: int) -> Iterator[Record]:
        gradients: list[Array] = []
        yield lambda gradient: gradients.append(gradient.copy())
        steps = pending.setdefault(self, deque())
        steps.append((entries, version, elements, gradients))
        if len(steps) > LATE:
            *facts, kept = steps.popleft()
            with record(self, *facts) as write:  # type: ignore[arg-type]
                for gradient in kept:
                    write(gradient)

    Wal.record = late  # type: ignore[method-assign]
    Wal.roll = lambda self, now: None  # type: ignore[method-assign]


def forgets_pushes() -> None:
    """Take the first push of a worker that comes after a start, whatever its step."""
    joins = Live.joins
    known: WeakKeyDictionary[Live, set[int]] = WeakKeyDictionary()

    def credulous(self: Live, header: Header) -> bool:
        met = known.setdefault(self, set())
        if header.worker not in met:
            met.add(header.worker)
            self._clocks[header.worker] = header.step
        return joins(self, header)

    Live.joins = credulous  # type: ignore[method-assign]


def forgets_attempts() -> None:
    """Know nothing of attempts after a start."""
    recover = Wal.recover

    def partly(self: Wal, way: Consistency) -> bytes | None:
        digest = recover(self, way)
        self.attempts = (0,) * len(self.attempts)
        return digest

    Wal.recover = partly  # type: ignore[method-assign]


def ignores_attempts() -> None:
    """Take everybody for the first of its rank."""
    push, attach, shared = Group.push, Group.attach, Group.shared

    def credulous(self: Group, header: Header, *more: Any) -> Outcome:
        return push(self, replace(header, attempt=0), *more)

    Group.push = credulous  # type: ignore[method-assign, assignment]
    Group.attach = lambda self, worker, attempt: attach(self, worker, 0)  # type: ignore[method-assign]
    Group.shared = lambda self, worker, attempt: shared(self, worker, 0)  # type: ignore[method-assign]


PLANTS: dict[str, Any] = {
    "acknowledges-early": acknowledges_early,
    "forgets-pushes": forgets_pushes,
    "forgets-attempts": forgets_attempts,
    "ignores-attempts": ignores_attempts,
}

if __name__ == "__main__":
    planted = sys.argv.pop(1)
    if planted in PLANTS:
        PLANTS[planted]()
    sys.exit(main())
