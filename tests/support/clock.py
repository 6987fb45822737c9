"""A clock that moves only when the test says so."""

import asyncio
import heapq
from itertools import count


class ManualClock:
    """A `tidemill.clock.Clock` under the test's hand; sleepers wake in the order of their deadlines.

    Args:
        start: the wall-clock time at the beginning, in seconds since the epoch.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._start = start
        self._elapsed = 0.0
        self._order = count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._changed = asyncio.Event()

    def now(self) -> float:
        """Wall-clock time, seconds since the epoch."""
        return self._start + self._elapsed

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._elapsed

    @property
    def sleeping(self) -> int:
        """How many tasks are asleep."""
        return sum(not future.done() for _, _, future in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        """Wait until the clock has been moved by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._order), future))
        self._changed.set()
        await future

    async def until_sleeping(self, tasks: int = 1) -> None:
        """Wait until at least so many tasks are asleep: then what was to happen before they slept has happened."""
        while self.sleeping < tasks:
            self._changed.clear()
            await self._changed.wait()

    def jump(self, seconds: float) -> None:
        """Move the time at once, as a suspended machine would see it; due sleepers run when the caller next waits."""
        self._elapsed += seconds
        while self._sleepers and self._sleepers[0][0] <= self._elapsed:
            self._wake()

    async def advance(self, seconds: float) -> None:
        """Move the time deadline by deadline, letting every woken task run, and sleep again, before the next one."""
        target = self._elapsed + seconds
        await _settle()
        while self._sleepers and self._sleepers[0][0] <= target:
            self._elapsed = max(self._elapsed, self._sleepers[0][0])
            self._wake()
            await _settle()
        self._elapsed = target
        await _settle()

    def _wake(self) -> None:
        _, _, future = heapq.heappop(self._sleepers)
        if not future.done():
            future.set_result(None)


async def _settle() -> None:
    """Let the tasks that can run do so; work in other threads is not waited for."""
    for _ in range(10):
        await asyncio.sleep(0)
