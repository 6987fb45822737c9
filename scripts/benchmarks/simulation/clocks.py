"""The clocks of all workers, and who waits for the slowest."""

from collections import Counter

from scripts.benchmarks.simulation.engine import Signal


class Clocks:
    """How many steps of each worker were applied.

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        self._of = [0] * workers
        self._at: Counter[int] = Counter({0: workers})
        self._reached: dict[int, Signal] = {}
        self.least = 0
        """The clock of the slowest."""

    def tick(self, worker: int) -> None:
        """One more step of a worker was applied."""
        self._at[self._of[worker]] -= 1
        self._of[worker] += 1
        self._at[self._of[worker]] += 1
        while not self._at[self.least]:
            del self._at[self.least]
            self.least += 1
            self._reached.pop(self.least, Signal()).fire()

    def reach(self, clock: int) -> Signal:
        """Happens when every worker's clock is so high."""
        if clock <= self.least:
            done = Signal()
            done.fire()
            return done
        return self._reached.setdefault(clock, Signal())
