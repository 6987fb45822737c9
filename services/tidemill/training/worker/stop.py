"""The one way in which a worker is told to end."""

import threading


class Stopped(Exception):
    """The worker was told to end; nothing is wrong."""


class Stop:
    """Set once by whoever wants the worker to end; looked at wherever it works or waits."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self.reason = ""

    def set(self, reason: str) -> None:
        """Ask to end; the first reason is kept."""
        with self._lock:
            self.reason = self.reason or reason
        self._event.set()

    @property
    def is_set(self) -> bool:
        """Whether the worker is to end."""
        return self._event.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set, at most `timeout` seconds; whether it is."""
        return self._event.wait(timeout)

    def check(self) -> None:
        """Go on, or raise.

        Raises:
            Stopped: the worker is to end.
        """
        if self._event.is_set():
            raise Stopped(self.reason)

    def pause(self, seconds: float) -> None:
        """Wait so long.

        Raises:
            Stopped: the worker is to end, at once.
        """
        if self._event.wait(seconds):
            raise Stopped(self.reason)
