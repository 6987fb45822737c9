"""The sequences of a model: which are live, where each runs, and which wait for a place."""

import heapq
import logging
import math
import threading
import time
from collections.abc import Mapping
from typing import Protocol

from tidemill.errors import Cancelled, Exhausted, Invalid, TidemillError, Unavailable
from tidemill.inference.calls import Array, Call
from tidemill.inference.scheduling.sequence_queue import Batch, Instance, SequenceQueue, Waiting

LOG = logging.getLogger(__name__)

BACKLOG = 4096
"""Sequences that may wait for a place."""
WAITING = 16384
"""Requests that may wait, of all sequences."""
QUEUE = 1024
"""Requests of one sequence that may wait."""
LOOK = 1.0
"""Seconds between two looks whether callers whose sequences wait for a place are still there."""
_RETRY = 0.2


class Strategy(Protocol):
    """Puts requests of different sequences together."""

    places: int
    """Sequences that an instance can have at a time."""

    def pick(self, instance: Instance, now: float) -> Batch | float:
        """The next batch, or when to look again though nothing has happened; some sequence is ready."""


class SequenceTable:
    """The books of a scheduler, which calls every method with its lock held.

    Calls that shall be refused are put into `refusals`: the scheduler answers them when it has let go of the lock.

    Args:
        model: its name, for texts.
        strategy: puts requests together.
        instances: of the model.
        idle: seconds after which a sequence that is not heard of is given up.
        initial: implicit state of a sequence that begins.
        lock: of the scheduler.
    """

    def __init__(
        self,
        model: str,
        strategy: Strategy,
        instances: int,
        idle: float,
        initial: Mapping[str, Array],
        lock: threading.Lock,
    ) -> None:
        self.instances = [Instance(index, strategy.places, lock) for index in range(instances)]
        self.refusals: list[tuple[Waiting, TidemillError | None]] = []
        """Calls and what is wrong with them; None = nobody waits for them any more."""
        self.waiting = 0
        """Calls that have not begun to run."""
        self._model = model
        self._strategy = strategy
        self._idle = idle
        self._initial = initial
        # Low places first, so that batches have few empty rows, and evenly over the instances.
        self._free = [(place, instance.index) for place in range(strategy.places) for instance in self.instances]
        self._live: dict[int | str, SequenceQueue] = {}
        self._backlog: dict[SequenceQueue, None] = {}
        self._born = 0

    def admit(self, waiting: Waiting) -> float:
        """Take a request; returns when to `sweep` on its account at the latest.

        Raises:
            Invalid: it does not begin a sequence, nor belong to one that is live.
            Exhausted: too much waits.
        """
        call, now = waiting.call, waiting.came
        sequence = self._live.get(call.correlation)
        if sequence is not None and sequence.idle and sequence.heard + self._idle <= now:
            self._end(sequence, now)
            sequence = None
        if not call.starts and (sequence is None or not sequence.open):
            raise Invalid(
                f"inference request for sequence {call.correlation} to model '{self._model}' must specify the START "
                "flag on the first request of the sequence",
                reason="SEQUENCE_NOT_STARTED",
            )
        crowded = sequence is None and not self._free and len(self._backlog) >= BACKLOG
        if crowded or self.waiting >= WAITING or (sequence is not None and len(sequence.waiting) >= QUEUE):
            raise Exhausted("Exceeds maximum queue size", reason="QUEUE_FULL", retry_after=_RETRY)
        if sequence is None:
            sequence = self._begin(call.correlation, now)
        elif call.starts and sequence.open:
            LOG.debug("a sequence begins anew before its end", extra={"model": self._model})
        sequence.open = not call.ends
        sequence.heard = now
        sequence.waiting.append(waiting)
        self.waiting += 1
        self._arm(sequence, now)
        return self._limit(sequence, now)

    def pick(self, instance: Instance, now: float) -> Batch | float | None:
        """What the instance shall run next, or when to look again; None = when something has happened."""
        while instance.ready:
            found = self._strategy.pick(instance, now)
            if not isinstance(found, Batch):
                return found
            gone = [sequence for sequence in found.sequences if not sequence.waiting[0].call.wanted]
            if not gone:
                for sequence in found.sequences:
                    del instance.ready[sequence]
                    sequence.running = sequence.waiting.popleft()
                self.waiting -= len(found.sequences)
                return found
            for sequence in gone:
                self._lose(sequence, now)
        return None

    def finish(self, sequence: SequenceQueue, *, ran: bool, now: float) -> float:
        """The running request has its reply; returns when to `sweep` at the latest.

        Args:
            ran: whether the model saw it. One that it did not see ends the sequence, which would be wrong without it.
        """
        assert sequence.running is not None
        call, sequence.running, sequence.heard = sequence.running.call, None, now
        if not ran:
            self._cancel(sequence)
            self._end(sequence, now)
        elif call.ends:
            self._end(sequence, now)
        else:
            self._arm(sequence, now)
        return self._limit(sequence, now)

    def sweep(self, now: float) -> float:
        """Give up sequences that are not heard of, or have waited too long; returns when to look again."""
        due = math.inf
        for sequence in list(self._live.values()):
            if sequence.idle and sequence.heard + self._idle <= now:
                LOG.debug("a sequence is given up: nothing was heard of it", extra={"model": self._model})
                self._end(sequence, now)
            elif sequence in self._backlog:
                self._check_waiting(sequence, now)
        for sequence in self._live.values():
            due = min(due, self._limit(sequence, now))
        return due

    def refuse_all(self, error: TidemillError) -> None:
        """Refuse everything that waits."""
        for sequence in self._live.values():
            self._refuse(sequence, error)
            sequence.open = False
        for instance in self.instances:
            instance.ready.clear()

    def _begin(self, correlation: int | str, now: float) -> SequenceQueue:
        sequence = SequenceQueue(correlation=correlation, age=self._born, state=self._initial, heard=now)
        self._born += 1
        self._live[correlation] = sequence
        if self._free:
            self._settle(sequence)
        else:
            self._backlog[sequence] = None
        return sequence

    def _settle(self, sequence: SequenceQueue) -> None:
        """Give it the first free place."""
        place, index = heapq.heappop(self._free)
        sequence.instance, sequence.place = self.instances[index], place
        self.instances[index].sequences[place] = sequence

    def _arm(self, sequence: SequenceQueue, now: float) -> None:
        """Have its next request run if it can."""
        instance = sequence.instance
        if instance is None or sequence.running or not sequence.waiting or sequence in instance.ready:
            return
        sequence.since = now
        instance.ready[sequence] = None
        instance.changed.notify()

    def _end(self, sequence: SequenceQueue, now: float) -> None:
        """Free its place; what begins it anew comes after all others that wait for one."""
        sequence.state = self._initial
        if sequence.waiting and sequence.instance is not None and not self._backlog:
            self._arm(sequence, now)
            return
        self._leave(sequence)
        if sequence.waiting:
            self._backlog[sequence] = None
        else:
            del self._live[sequence.correlation]
        while self._free and self._backlog:
            following = next(iter(self._backlog))
            del self._backlog[following]
            self._settle(following)
            self._arm(following, now)

    def _leave(self, sequence: SequenceQueue) -> None:
        self._backlog.pop(sequence, None)
        instance = sequence.instance
        if instance is None:
            return
        instance.ready.pop(sequence, None)
        instance.sequences[sequence.place] = None
        heapq.heappush(self._free, (sequence.place, instance.index))
        sequence.instance = None

    def _lose(self, sequence: SequenceQueue, now: float) -> None:
        """Its next request is not wanted any more, so what follows would go on from a state that is not there."""
        self.refusals.append((sequence.waiting.popleft(), None))
        self.waiting -= 1
        if sequence.instance is not None:
            sequence.instance.ready.pop(sequence, None)
        self._cancel(sequence)
        self._end(sequence, now)

    def _cancel(self, sequence: SequenceQueue) -> None:
        """Refuse its requests, up to one that begins it anew."""
        error = Cancelled(
            "the sequence has ended: nobody waited any more for an earlier one of its requests",
            reason="SEQUENCE_CANCELLED",
        )
        while sequence.waiting and not sequence.waiting[0].call.starts:
            self.refusals.append((sequence.waiting.popleft(), error))
            self.waiting -= 1

    def _refuse(self, sequence: SequenceQueue, error: TidemillError) -> None:
        self.waiting -= len(sequence.waiting)
        self.refusals.extend((waiting, error) for waiting in sequence.waiting)
        sequence.waiting.clear()

    def _check_waiting(self, sequence: SequenceQueue, now: float) -> None:
        """Give up a sequence in the backlog whose caller has gone or wants to wait no longer."""
        if not sequence.waiting[0].call.wanted:
            self._lose(sequence, now)
        elif _patience(sequence) <= now:
            error = Unavailable("timeout of the corresponding sequence has been expired", reason="SEQUENCE_TIMEOUT")
            self._refuse(sequence, error)
            self._end(sequence, now)

    def _limit(self, sequence: SequenceQueue, now: float) -> float:
        """When something may have to be done about it though nothing happens."""
        if sequence in self._backlog:
            expires = sequence.waiting[0].call.expires
            left = LOOK if expires is None else min(LOOK, expires - time.monotonic())
            return min(now + left, _patience(sequence))
        return sequence.heard + self._idle if sequence.idle else math.inf


def _patience(sequence: SequenceQueue) -> float:
    return min((_wait(waiting.call, waiting.came) for waiting in sequence.waiting), default=math.inf)


def _wait(call: Call, came: float) -> float:
    return came + call.patience if call.patience > 0 else math.inf
