"""How long a step of a call may take."""

from tidemill.rpc import deadline

SHARE = 0.8
"""Part of the time left that a step may use up: the rest is for the answer, which says more than a passed deadline."""


def limit() -> float | None:
    """Seconds for the next step of the call in work; None when its caller set no deadline."""
    left = deadline.remaining()
    return None if left is None else max(SHARE * left, 0.001)
