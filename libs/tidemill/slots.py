"""A bounded number of places for what holds threads or memory; who finds none is sent away, not kept waiting."""

import threading
from types import TracebackType

from tidemill.errors import Exhausted


class Slots:
    """A context manager that takes a place, for many threads at once.

    Args:
        count: number of places.
        what: what they are for, in the error's text.
        reason: the error's reason.
        retry_after: seconds after which the error asks to try again.
    """

    def __init__(self, count: int, what: str, reason: str, *, retry_after: float = 0.2) -> None:
        self._count = count
        self._what = what
        self._reason = reason
        self._retry_after = retry_after
        self._taken = 0
        self._lock = threading.Lock()

    @property
    def taken(self) -> int:
        """Places that are taken now."""
        return self._taken

    def __enter__(self) -> None:
        with self._lock:
            if self._taken >= self._count:
                raise Exhausted(
                    f"at most {self._count} {self._what} at a time; try again later",
                    reason=self._reason,
                    retry_after=self._retry_after,
                )
            self._taken += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._taken -= 1
