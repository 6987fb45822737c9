"""Time for threads that wait, under the test's hand."""

import threading


class ManualTiming:
    """A `tidemill.inference.scheduling.timing.Timing` that moves only when the test says so."""

    def __init__(self) -> None:
        self._now = 1000.0
        self._lock = threading.Lock()
        self._waiting: dict[int, threading.Condition] = {}

    def now(self) -> float:
        """Seconds, moved by `advance`."""
        return self._now

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """Wait until `condition` is notified, or the time has been moved at all."""
        with self._lock:
            self._waiting[id(condition)] = condition
        condition.wait()

    def advance(self, seconds: float) -> None:
        """Move the time, and have every thread that waits look at it."""
        self._now += seconds
        with self._lock:
            waiting = list(self._waiting.values())
        for condition in waiting:
            with condition:
                condition.notify_all()
