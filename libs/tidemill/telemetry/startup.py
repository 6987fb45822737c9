"""How loud to be about a dependency that is away: while everything starts, that is the normal course of things."""

import logging

from tidemill.clock import Clock

SECONDS = 15.0


class StartUp:
    """The first seconds of a process's part.

    Args:
        clock: tells when they are over.
        seconds: how many they are.
    """

    def __init__(self, clock: Clock, seconds: float = SECONDS) -> None:
        self._clock = clock
        self._end = clock.monotonic() + seconds

    @property
    def level(self) -> int:
        """Level for the message that something is not there: INFO in the first seconds, WARNING after them."""
        return logging.INFO if self._clock.monotonic() < self._end else logging.WARNING
