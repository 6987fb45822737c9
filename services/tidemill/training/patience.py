"""Doing something again until its dependency is back."""

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tidemill.clients.backoff import Backoff
from tidemill.clock import Clock
from tidemill.errors import DeadlineExceeded, Exhausted, TidemillError, Unavailable

LOG = logging.getLogger(__name__)
T = TypeVar("T")
FIRST = 0.25
LONGEST = 5.0
"""First and longest pause between two attempts, in seconds."""


class Attempts:
    """Pauses between attempts at one thing; the first failure is logged, and the success after it.

    Args:
        clock: what pauses go by.
        what: what is attempted.
        tell: is told too.
    """

    def __init__(self, clock: Clock, what: str, tell: Callable[[str], None] | None = None) -> None:
        self._clock = clock
        self._what = what
        self._tell = tell
        self._backoff = Backoff(FIRST, LONGEST)
        self._failing = False

    async def pause(self, error: TidemillError) -> None:
        """Wait after `error`."""
        if not self._failing:
            LOG.warning("%s fails and is tried again: %s", self._what, error.message, extra={"reason": error.reason})
            if self._tell is not None:
                self._tell(f"{self._what} fails and is tried again: {error.message}")
        self._failing = True
        await self._clock.sleep(self._backoff.next())

    def succeeded(self) -> None:
        """It has worked."""
        if self._failing:
            LOG.info("%s works again", self._what)
        self._failing = False
        self._backoff.reset()


def is_passing(error: TidemillError) -> bool:
    """Whether the same call may succeed later."""
    return isinstance(error, Unavailable | DeadlineExceeded | Exhausted)


async def patiently(
    clock: Clock, what: str, call: Callable[[], Awaitable[T]], tell: Callable[[str], None] | None = None
) -> T:
    """The result of `call`, made again for as long as it takes while a dependency is out of reach.

    Args:
        clock: what pauses go by.
        what: what is done, for the log.
        call: does it; must be safe to repeat.
        tell: is told once when it fails.
    """
    attempts = Attempts(clock, what, tell)
    while True:
        try:
            result = await call()
        except TidemillError as error:
            if not is_passing(error):
                raise
            await attempts.pause(error)
        else:
            attempts.succeeded()
            return result
