"""Time for threads that wait, as a dependency, so that tests can move it by hand."""

import threading
import time
from typing import Protocol


class Timing(Protocol):
    """What a scheduler's threads need of time."""

    def now(self) -> float:
        """Monotonic time in seconds."""

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """Wait on `condition`, which the caller holds, until it is notified or `seconds` are over; None = for ever."""


class SystemTiming:
    """The machine's own time."""

    def now(self) -> float:
        """Monotonic time in seconds."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, seconds: float | None) -> None:
        """Wait until `condition` is notified, or `seconds` are over."""
        condition.wait(None if seconds is None else max(0.0, seconds))
