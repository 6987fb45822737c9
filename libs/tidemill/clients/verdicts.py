"""Rounds that close without the slowest: shard 0 decides whose gradients count, and clients tell the other shards."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from tidemill.clients.fanout import Calls

T = TypeVar("T")
Tell = Callable[[int, int, Sequence[int], Calls], None]
"""(shard, step, ranks, calls): tells a shard whose gradients make a step."""


class Verdicts:
    """What shard 0 has decided last, as one client knows it. Safe for threads.

    Args:
        shards: how many there are.
        tell: tells one of them.
    """

    def __init__(self, shards: int, tell: Tell) -> None:
        self._shards = shards
        self._tell = tell
        self._lock = threading.Lock()
        self._last: tuple[int, tuple[int, ...]] = -1, ()

    def learn(self, step: int, ranks: Sequence[int], calls: Calls) -> None:
        """Shard 0 has said whose gradients make a step: all others hear it. Raises what telling raises."""
        if not ranks or self._shards == 1:
            return
        with self._lock:
            if step > self._last[0]:
                self._last = step, tuple(ranks)
        for shard in range(1, self._shards):
            self._tell(shard, step, ranks, calls)

    def repeat(self, shard: int, step: int, calls: Calls) -> None:
        """Before a call that waits for the round of a step: what is known of it, which a shard may have lost since."""
        with self._lock:
            known, ranks = self._last
        if ranks and known == step and shard:
            self._tell(shard, step, ranks, calls)


class Order:
    """The order of one push: shard 0 has it when all others have. Then no worker that counts is late elsewhere.

    Args:
        shards: how many there are.
    """

    def __init__(self, shards: int) -> None:
        self._sent = [threading.Event() for _ in range(1, shards)]

    def around(self, push: Callable[[int, Calls], T]) -> Callable[[int, Calls], T]:
        """The attempt to push to a shard: one that fails holds up nobody."""

        def attempt(shard: int, calls: Calls) -> T:
            try:
                return push(shard, calls)
            finally:
                self._done(shard)

        return attempt

    def of(self, shard: int, messages: Iterator[bytes]) -> Iterator[bytes]:
        """The messages of a push to a shard: the last one of shard 0's when those of all others have been sent."""
        last = next(messages)
        for message in messages:
            yield last
            last = message
        if shard == 0:
            for sent in self._sent:
                sent.wait()
        yield last
        self._done(shard)

    def _done(self, shard: int) -> None:
        if 0 < shard <= len(self._sent):
            self._sent[shard - 1].set()
