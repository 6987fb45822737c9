"""Watches the limits of calls for which no thread waits."""

import threading
from collections.abc import Callable

from tidemill.inference.turns import patience


class Limits:
    """Calls back when a limit has been reached; its thread begins with the first limit. Safe to use from any thread.

    Args:
        reached: called at a limit; gives the next one, None when there is none.
    """

    def __init__(self, reached: Callable[[], int | None]) -> None:
        self._reached = reached
        self._lock = threading.Lock()
        self._changed = threading.Lock()
        self._changed.acquire()
        self._next: int | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def watch(self, limit: int) -> None:
        """There is a limit at this time, by `time.monotonic_ns()`."""
        with self._lock:
            if self._closed or (self._next is not None and self._next <= limit):
                return
            self._next = limit
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="limits", daemon=True)
                self._thread.start()
            else:
                self._wake()

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            self._closed = True
            self._wake()
            thread = self._thread
        if thread is not None:
            thread.join()

    def _wake(self) -> None:
        if self._changed.locked():
            self._changed.release()

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                limit = self._next
            if self._changed.acquire(timeout=patience(None if limit is None else limit / 1e9)):
                continue
            with self._lock:
                self._next = None
            following = self._reached()
            if following is not None:
                with self._lock:
                    self._next = following if self._next is None else min(self._next, following)
