"""The secrets by which worker processes are known; their digests alone are kept."""

import hashlib
import secrets
from collections.abc import Callable
from typing import Generic, TypeVar

from tidemill.errors import Unauthenticated, Unavailable

T = TypeVar("T")


class Tokens(Generic[T]):
    """Who was given which token.

    Args:
        complete: whether every holder is known here; until then an unknown token may be that of a worker that was
            started by a process before this one.
    """

    def __init__(self, complete: Callable[[], bool] = lambda: True) -> None:
        self._complete = complete
        self._holders: dict[str, T] = {}

    def know(self, digest: str, holder: T) -> None:
        """From now on `holder` is who has the token of this digest."""
        self._holders[digest] = holder

    def find(self, token: str) -> T:
        """Who was given `token`. The look-up is by digest, so its time says nothing about other tokens.

        Raises:
            Unauthenticated: reason UNKNOWN_TOKEN.
            Unavailable: reason NOT_READY, it may become known.
        """
        holder = self._holders.get(digest(token))
        if holder is None and not self._complete():
            raise Unavailable("the jobs at work are not all taken up yet: ask again", reason="NOT_READY")
        if holder is None:
            raise Unauthenticated("the token is of no worker at work", reason="UNKNOWN_TOKEN")
        return holder

    def revoke(self, digest: str) -> None:
        """Forget the token of this digest."""
        self._holders.pop(digest, None)


def fresh() -> str:
    """A new token."""
    return secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(token.encode()).hexdigest()
