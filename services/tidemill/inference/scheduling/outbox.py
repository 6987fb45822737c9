"""Answers that leave in the order in which their calls came."""

import threading
from collections import deque
from collections.abc import Callable, Iterable

from tidemill.errors import TidemillError
from tidemill.inference.calls import Answer
from tidemill.inference.scheduling.queue import Entry

Reply = Answer | TidemillError


class Outbox:
    """Holds replies back until those to earlier calls have left. Safe to use from any thread.

    Args:
        send: passes one reply on; called by one thread at a time, with no lock held.
    """

    def __init__(self, send: Callable[[Entry, Reply], None]) -> None:
        self._send = send
        self._lock = threading.Lock()
        self._expected: deque[Entry] = deque()
        self._replies: dict[Entry, Reply] = {}
        self._sending = False

    def expect(self, entry: Entry) -> None:
        """A call came."""
        with self._lock:
            self._expected.append(entry)

    def forget(self, entries: Iterable[Entry]) -> None:
        """These calls are answered otherwise: nobody has to wait for them."""
        with self._lock:
            for entry in entries:
                self._expected.remove(entry)
        self.put({})

    def put(self, replies: dict[Entry, Reply]) -> None:
        """Pass these replies on as soon as it is their turn: perhaps by another thread that is at it."""
        with self._lock:
            self._replies |= replies
            if self._sending:
                return
            self._sending = True
        while ready := self._next():
            for entry, reply in ready:
                self._send(entry, reply)

    def _next(self) -> list[tuple[Entry, Reply]]:
        ready = []
        with self._lock:
            while self._expected and self._expected[0] in self._replies:
                entry = self._expected.popleft()
                ready.append((entry, self._replies.pop(entry)))
            self._sending = bool(ready)
        return ready
