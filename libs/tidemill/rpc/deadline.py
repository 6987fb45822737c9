"""The time that is left for the request in work, carried to every call made on its behalf."""

import time
from contextvars import ContextVar

MARGIN = 0.05
"""Seconds kept back on each hop, so that an answer can still travel."""

_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def start(seconds: float | None) -> None:
    """Let the current context's deadline be `seconds` from now; None = none."""
    _deadline.set(None if seconds is None else time.monotonic() + seconds)


def remaining() -> float | None:
    """Seconds left, perhaps negative; None when there is no deadline."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - time.monotonic()


def expiry() -> float | None:
    """When the request in work ends, by `time.monotonic()`; None when it has no deadline."""
    return _deadline.get()


def timeout(own: float | None) -> float | None:
    """The timeout of a call made now: the smaller of `own` and what is left of the request, less the margin."""
    left = remaining()
    if left is None:
        return own
    left = max(left - MARGIN, 0.001)
    return left if own is None else min(own, left)
