"""A bounded number of turns, given in the order in which they were asked for."""

import threading
import time
from collections import deque

from tidemill.yielding import about_to_wait


class Turns:
    """Lets a few at a time go on. Safe to use from any thread.

    Args:
        count: how many at a time; 0 = all.
    """

    def __init__(self, count: int) -> None:
        self._unbounded = count == 0
        self._free = count
        self._lock = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()

    def take(self, until: float | None = None) -> bool:
        """Wait for a turn, which is to be given back; False when there was none until then, by `time.monotonic()`."""
        if self._unbounded:
            return True
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        about_to_wait()
        if mine.acquire(timeout=patience(until)):
            return True
        with self._lock:
            if mine in self._waiting:
                self._waiting.remove(mine)
                return False
        return True  # it came at the last moment

    def give(self) -> None:
        """Give a turn back: the next one who waits has it."""
        if self._unbounded:
            return
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._free += 1


def patience(until: float | None) -> float:
    """The timeout with which a lock is acquired until then, by `time.monotonic()`; None = for ever."""
    return -1 if until is None else min(max(until - time.monotonic(), 0), threading.TIMEOUT_MAX)
