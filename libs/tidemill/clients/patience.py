"""How often, and after which pauses, a transfer that broke is taken up again."""

import asyncio
from dataclasses import dataclass

from tidemill import errors
from tidemill.clients.backoff import Backoff
from tidemill.rpc import deadline


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """Bounds of new attempts.

    Args:
        attempts: attempts without any progress between them.
        pause: seconds before the second attempt; doubled each time.
        longest_pause: seconds.
    """

    attempts: int = 8
    pause: float = 0.1
    longest_pause: float = 2.0


def is_broken(error: errors.TidemillError) -> bool:
    """Whether `error` says that the connection or the peer failed, and not that the peer refused."""
    if isinstance(error, errors.Unavailable | errors.Cancelled):
        return True
    # What the transport makes of a reset stream; a server of ours gives a reason of its own.
    return error.code in (errors.Code.INTERNAL, errors.Code.UNKNOWN) and error.reason == error.default_reason


class Attempts:
    """Counts the attempts of one transfer."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._backoff = Backoff(patience.pause, patience.longest_pause)
        self._failed = 0

    def progress(self) -> None:
        """Something was transferred: count anew."""
        self._failed = 0
        self._backoff.reset()

    async def failed(self, error: errors.TidemillError) -> None:
        """Wait before the next attempt.

        Raises:
            TidemillError: `error` itself, when that was the last attempt, or no time is left.
        """
        self._failed += 1
        pause = max(self._backoff.next(), min(error.retry_after or 0.0, self._patience.longest_pause))
        left = deadline.remaining()
        if self._failed >= self._patience.attempts or (left is not None and left < pause):
            raise error
        await asyncio.sleep(pause)
