"""A token bucket: so many bytes a second, and a burst at once."""

from collections.abc import Callable


class TokenBucket:
    """Says how long to wait before bytes may pass. Not safe for threads.

    It fills at `rate` up to `burst`. Bytes are taken at once, also more than there are: the debt is what is waited for,
    so the long-term rate is exact however coarse the waits are, as long as nobody waits less than told.

    Args:
        rate: bytes a second.
        burst: most bytes that pass at once after a pause.
        clock: monotonic seconds.
    """

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]) -> None:
        if not rate > 0 or not burst > 0:
            raise ValueError(f"a rate and a burst are positive, not {rate} and {burst}")
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._seen = clock()

    def take(self, size: int) -> float:
        """Take bytes; the seconds to wait before they may pass."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._seen) * self._rate)
        self._seen = now
        self._tokens -= size
        return max(0.0, -self._tokens / self._rate)
