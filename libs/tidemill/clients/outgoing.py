"""Pushes that leave while their gradient is still being computed."""

import heapq
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from tidemill import errors
from tidemill.clients.fanout import Calls, Running
from tidemill.tensors.blocks import Block

T = TypeVar("T")
R = TypeVar("R")


class Cut:
    """The blocks of all shards in the order of the flat vector.

    Args:
        parts: for each shard its blocks, in order.
    """

    def __init__(self, parts: Sequence[Sequence[Block]]) -> None:
        self.parts = parts
        places = sorted((block.offset, shard, block) for shard, part in enumerate(parts) for block in part)
        self.places = [(shard, block) for _, shard, block in places]
        """Each block with its shard."""
        self.starts = [start for start, _, _ in places]
        """First element of each block."""


class Readiness:
    """Which blocks of one gradient are there. Safe for threads; it holds no data.

    Args:
        cut: the blocks.
        whole: whether all are there.
    """

    def __init__(self, cut: Cut, *, whole: bool = False) -> None:
        self._cut = cut
        self._missing = [block.elements for _, block in cut.places]
        self._ready: list[list[Block]] = [[] for _ in cut.parts]
        self._changed = threading.Condition()
        self._whole = whole
        self._tried: set[int] = set()

    def ready(self, start: int, stop: int) -> None:
        """The elements from one position to another are there; each element is to be told once."""
        found = False
        with self._changed:
            if self._whole:
                return
            starts = self._cut.starts
            at = max(bisect_right(starts, start) - 1, 0)
            while at < len(starts) and starts[at] < stop:
                shard, block = self._cut.places[at]
                more = min(stop, block.offset + block.elements) - max(start, block.offset)
                self._missing[at] -= more
                if more > 0 and not self._missing[at]:
                    self._ready[shard].append(block)
                    found = True
                at += 1
            if found:
                self._changed.notify_all()

    def complete(self) -> None:
        """All elements are there, and the push counts: streams may end."""
        with self._changed:
            self._whole = True
            self._changed.notify_all()

    @property
    def is_complete(self) -> bool:
        """Whether `complete` was called."""
        return self._whole

    @contextmanager
    def leaving(self, endpoint: int, shard: int, calls: Calls, *, early: bool) -> Iterator["Departures"]:
        """What one attempt to push to a shard sends; entered when there is something to send.

        Only the first attempt sends while other blocks are missing: a stream that broke is repeated from the whole
        gradient.

        Args:
            endpoint: the copy of the shard.
            shard: its number.
            calls: of the operation: when that ends, so does the wait.
            early: whether blocks may leave before all are there.

        Raises:
            Cancelled: the operation has ended.
        """
        early = early and endpoint not in self._tried
        self._tried.add(endpoint)
        waiting = _Waiting(self._changed)
        with calls.open(waiting, endpoint), self._changed:
            self._changed.wait_for(lambda: waiting.ended or self._whole or (early and bool(self._ready[shard])))
            if waiting.ended:
                raise errors.Cancelled("the push was given up before it was complete", reason="GIVEN_UP")
            waiting.ended = True
        departures = Departures(self, shard)
        try:
            yield departures
        finally:
            departures.close()

    def _next(self, shard: int, seen: int) -> Sequence[Block]:
        """Blocks of a shard that are ready beyond those that were seen; under the lock."""
        return self._ready[shard][seen:]


class Departures:
    """The blocks of one stream, as it takes them: of those that are there the front ones first.

    A stream takes a block when it has sent the one before, so nothing queues up here. It ends when the whole gradient
    is there and not before: until then the shard has taken nothing. It must be closed only when its call has ended.

    Args:
        readiness: says what is there.
        shard: whose blocks.
    """

    def __init__(self, readiness: Readiness, shard: int) -> None:
        self._readiness = readiness
        self._shard = shard
        self._seen = 0
        self._heap: list[tuple[int, Block]] = []
        self._part = readiness._cut.parts[shard]
        self._left = {block.index for block in self._part}
        self._closed = False

    def __iter__(self) -> Iterator[Block]:
        while (block := self._take()) is not None:
            yield block

    def _take(self) -> Block | None:
        with (readiness := self._readiness)._changed:
            while not self._closed:
                for block in readiness._next(self._shard, self._seen):
                    heapq.heappush(self._heap, (block.index, block))
                    self._seen += 1
                if readiness.is_complete and len(self._heap) < len(self._left):
                    self._heap = [(b.index, b) for b in self._part if b.index in self._left]
                if self._heap:
                    _, block = heapq.heappop(self._heap)
                    self._left.discard(block.index)
                    return block
                if readiness.is_complete:
                    return None
                readiness._changed.wait()
        return None

    def close(self) -> None:
        """Let who waits for a block go: the call has ended."""
        with self._readiness._changed:
            self._closed = True
            self._readiness._changed.notify_all()


class _Waiting:
    """Like a call, as far as `Calls` knows: cancelled when the operation ends."""

    def __init__(self, changed: threading.Condition) -> None:
        self._changed = changed
        self.ended = False

    def cancel(self) -> None:
        with self._changed:
            if not self.ended:
                self.ended = True
                self._changed.notify_all()


class Push(Generic[T, R]):
    """A push that has begun. It is to be finished, or cancelled: as a context manager it is cancelled after an error.

    Args:
        readiness: which blocks are there.
        running: sends them.
        conclude: waits for the shards' answers, and makes the outcome of them.
        keep: called when the push is complete.
        undo: called when it is given up before: then it has changed nothing anywhere.
    """

    def __init__(
        self,
        readiness: Readiness,
        running: Running[T],
        conclude: Callable[[Running[T]], R],
        keep: Callable[[], None],
        undo: Callable[[], None],
    ) -> None:
        self._readiness = readiness
        self._running = running
        self._conclude = conclude
        self._keep = keep
        self._undo = undo
        self.ready = readiness.ready
        """Is told that the elements from one position to another are there, in any order, each once."""

    def commit(self) -> Sequence[Future[Any]]:
        """All of the gradient is there, and the push counts; the answers that are to come. Returns at once.

        When a shard has refused it already, it counts nowhere.
        """
        answers = self._running.futures
        if not self._readiness.is_complete and not any(one.done() and one.exception() for one in answers):
            self._keep()
            self._readiness.complete()
        return answers

    def finish(self) -> R:
        """Commit, and wait for the answers. Raises as `ParametersClient.push`."""
        with self:
            self.commit()
            return self._conclude(self._running)

    def cancel(self) -> None:
        """End what is under way. Unless it was committed, no shard has taken anything."""
        self._running.end()
        if not self._readiness.is_complete:
            self._undo()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.cancel()
