"""Pauses between attempts: each twice as long as the one before, up to a limit, and up to half of it left to chance."""

import random


class Backoff:
    """The pauses of one task.

    Args:
        first: seconds of the first pause.
        limit: seconds of the longest.
    """

    def __init__(self, first: float = 0.05, limit: float = 2.0) -> None:
        self._first = first
        self._limit = limit
        self._next = first

    def reset(self) -> None:
        """Begin again with the first pause: an attempt succeeded."""
        self._next = self._first

    def next(self) -> float:
        """Seconds to wait now."""
        pause, self._next = self._next, min(self._limit, 2 * self._next)
        return pause * random.uniform(0.5, 1.0)
