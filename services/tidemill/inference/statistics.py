"""What became of a version's requests, and where their time went; as a profiler that polls it needs it."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(slots=True)
class Duration:
    """How often, and for how many nanoseconds together."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Note `count` more that took `ns` together."""
        self.count += count
        self.ns += ns


@dataclass(frozen=True, slots=True)
class Times:
    """Nanoseconds of one run: for bringing inputs together, for the model itself, for taking outputs apart."""

    input: int = 0
    infer: int = 0
    output: int = 0


@dataclass(slots=True)
class Execution:
    """Runs of one batch size."""

    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class Responses:
    """Answers with one index among those to the same request, of a decoupled model."""

    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    empty: Duration = field(default_factory=Duration)
    cancel: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class Snapshot:
    """The books of a version at one moment.

    Args:
        last: milliseconds since the epoch of the last inference; 0 = none yet.
        inferences: rows that were inferred, cached ones not among them.
        executions: runs of the model.
        success, fail: requests from their arrival to their answer.
        queue: time that requests waited. With `input`, `infer` and `output` it counts successful requests only, those
            answered from the cache not among them.
        hit, miss: looks into the response cache.
        batches: by batch size.
        responses: of decoupled models, by index of the answer.
    """

    last: int = 0
    inferences: int = 0
    executions: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)
    hit: Duration = field(default_factory=Duration)
    miss: Duration = field(default_factory=Duration)
    batches: dict[int, Execution] = field(default_factory=dict)
    responses: dict[int, Responses] = field(default_factory=dict)

    def add(self, other: "Snapshot") -> None:
        """Add the books of the same version in another process."""
        self.last = max(self.last, other.last)
        self.inferences += other.inferences
        self.executions += other.executions
        for name in _DURATIONS:
            _add(getattr(self, name), getattr(other, name))
        for size, execution in other.batches.items():
            _add_all(self.batches.setdefault(size, Execution()), execution)
        for index, responses in other.responses.items():
            _add_all(self.responses.setdefault(index, Responses()), responses)


_DURATIONS = ("success", "fail", "queue", "input", "infer", "output", "hit", "miss")


class Statistics:
    """The books of one version. Safe to use from any thread: every entry is seen as a whole or not at all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._now = Snapshot()

    def executed(self, rows: int, queues: Sequence[int], times: Times, totals: Sequence[int]) -> None:
        """One run of the model that succeeded.

        Args:
            rows: of the batch.
            queues: nanoseconds that each request of the batch waited.
            times: of the run; every request of the batch is counted with all of it.
            totals: nanoseconds from the arrival of each request to its answer.
        """
        with self._lock:
            now = self._now
            now.last = max(now.last, time.time_ns() // 1_000_000)
            now.inferences += rows
            now.executions += 1
            size = now.batches.get(rows)
            if size is None:
                size = now.batches[rows] = Execution()
            size.input.add(times.input)
            size.infer.add(times.infer)
            size.output.add(times.output)
            count = len(totals)
            now.success.add(sum(totals), count)
            now.queue.add(sum(queues), count)
            now.input.add(count * times.input, count)
            now.infer.add(count * times.infer, count)
            now.output.add(count * times.output, count)

    def answered(self, rows: int, queued: int, infer: int, total: int) -> None:
        """One run of the model for one request, which took nothing but the model's time: `executed` at less cost.

        Args:
            rows: of the request.
            queued, infer, total: nanoseconds that it waited, that the model ran, and from its arrival to its answer.
        """
        with self._lock:
            now = self._now
            now.last = max(now.last, time.time_ns() // 1_000_000)
            now.inferences += rows
            now.executions += 1
            size = now.batches.get(rows)
            if size is None:
                size = now.batches[rows] = Execution()
            size.input.count += 1
            size.infer.count += 1
            size.infer.ns += infer
            size.output.count += 1
            now.success.count += 1
            now.success.ns += total
            now.queue.count += 1
            now.queue.ns += queued
            now.input.count += 1
            now.infer.count += 1
            now.infer.ns += infer
            now.output.count += 1

    def failed(self, total: int) -> None:
        """A request failed, `total` nanoseconds after it came."""
        with self._lock:
            self._now.fail.add(total)

    def hit(self, lookup: int, total: int) -> None:
        """A request was answered from the cache; nanoseconds of the look, and since it came."""
        with self._lock:
            self._now.last = time.time_ns() // 1_000_000
            self._now.success.add(total)
            self._now.hit.add(lookup)

    def missed(self, ns: int) -> None:
        """The cache had no answer; nanoseconds of looking and of keeping the answer later."""
        with self._lock:
            self._now.miss.add(ns)

    def responded(self, index: int, infer: int, output: int, kind: str) -> None:
        """A decoupled model gave its answer number `index`.

        Args:
            infer, output: nanoseconds that the model and sending took.
            kind: "success", "fail", "empty" (nothing but the end) or "cancel".
        """
        with self._lock:
            responses = self._now.responses.setdefault(index, Responses())
            if kind in ("success", "fail"):
                responses.infer.add(infer)
                responses.output.add(output)
            getattr(responses, kind).add(infer + output)

    def snapshot(self) -> Snapshot:
        """A copy of the books."""
        copy = Snapshot()
        with self._lock:
            copy.add(self._now)
        return copy


def _add(mine: Duration, other: Duration) -> None:
    mine.add(other.ns, other.count)


def _add_all(mine: Execution | Responses, other: Execution | Responses) -> None:
    for name in mine.__slots__:
        _add(getattr(mine, name), getattr(other, name))
