"""Time as a dependency, so that tests can move it by hand."""

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What code that waits or expires things needs of time."""

    def now(self) -> float:
        """Wall-clock time, seconds since the epoch: for records, never for expiry."""

    def monotonic(self) -> float:
        """Monotonic time in seconds: for deadlines, leases and durations."""

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run for `seconds`."""


class SystemClock:
    """The machine's own time."""

    def now(self) -> float:
        """Wall-clock time, seconds since the epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Monotonic time in seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Let other tasks run for `seconds`."""
        await asyncio.sleep(seconds)
