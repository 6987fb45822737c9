"""The requests of one sequence, and the places at a model's instance that sequences take."""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tidemill.inference.arrangement import Arrangement
from tidemill.inference.calls import Array, Call, Receive


@dataclass(frozen=True, slots=True, eq=False)
class Waiting:
    """A call that has not run yet, who gets its replies, and when it came."""

    call: Call
    receive: Receive
    came: float

    @property
    def shapes(self) -> tuple[object, ...]:
        """Its inputs' names and shapes but for the batch: calls that differ in them cannot share one."""
        return tuple(sorted((name, array.shape[1:]) for name, array in self.call.inputs.items()))


class Instance:
    """One instance of the model, which runs one batch at a time.

    Args:
        index: its number, from 0.
        places: sequences that it can have at a time.
        lock: guards everything.
    """

    def __init__(self, index: int, places: int, lock: threading.Lock) -> None:
        self.index = index
        self.sequences: list[SequenceQueue | None] = [None] * places
        """By place."""
        self.ready: dict[SequenceQueue, None] = {}
        """Sequences whose next request can run, in the order in which it became so."""
        self.changed = threading.Condition(lock)


@dataclass(slots=True, kw_only=True, eq=False)
class SequenceQueue:
    """One sequence, from its first request until its last one has run.

    Args:
        correlation: its id.
        age: rises from one sequence to the next.
        state: implicit state, inputs by name; that of the beginning until a request has run.
        heard: when it was last heard of.
        waiting: its requests in order, that which runs not among them.
        running: its request that runs.
        open: whether it takes further requests that do not start it anew.
        instance, place: where it runs; None while it waits in the backlog.
        since: when its next request became ready to run.
    """

    correlation: int | str
    age: int
    state: Mapping[str, Array]
    heard: float
    waiting: deque[Waiting] = field(default_factory=deque)
    running: Waiting | None = None
    open: bool = True
    instance: Instance | None = None
    place: int = 0
    since: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether it waits for its caller."""
        return self.running is None and not self.waiting


@dataclass(frozen=True, slots=True)
class Batch:
    """What shall run next.

    Args:
        sequences: whose next requests.
        closed: why it does not wait for more; see `Executor.run`.
        arrangement: of its rows.
    """

    sequences: Sequence[SequenceQueue]
    closed: str
    arrangement: Arrangement | None = None


def alike(sequences: Sequence[SequenceQueue], initial: Mapping[str, Array]) -> list[SequenceQueue]:
    """Those whose next requests have the same shapes as the first one's, and so can share a batch with it.

    Args:
        initial: the state of a sequence that begins.
    """
    if len(sequences) < 2:
        return list(sequences)
    first = _shapes(sequences[0], initial)
    return [sequence for sequence in sequences if _shapes(sequence, initial) == first]


def fits(sequences: Sequence[SequenceQueue], initial: Mapping[str, Array]) -> list[SequenceQueue]:
    """The same, up to the first one that cannot."""
    same = alike(sequences, initial)
    return [sequence for sequence, other in zip(sequences, same, strict=False) if sequence is other]


def _shapes(sequence: SequenceQueue, initial: Mapping[str, Array]) -> tuple[object, ...]:
    first = sequence.waiting[0]
    state = initial if first.call.starts else sequence.state
    return (first.shapes, [array.shape for array in state.values()])
