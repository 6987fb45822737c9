"""The secrets by which worker processes are known; their digests alone are kept, in memory."""

import hashlib
import secrets
from typing import Generic, TypeVar

from tidemill.errors import Unauthenticated

T = TypeVar("T")


class Tokens(Generic[T]):
    """Who was given which token."""

    def __init__(self) -> None:
        self._holders: dict[bytes, T] = {}

    def issue(self, holder: T) -> str:
        """A new token for `holder`."""
        token = secrets.token_urlsafe(32)
        self._holders[_digest(token)] = holder
        return token

    def find(self, token: str) -> T:
        """Who was given `token`. The look-up is by digest, so its time says nothing about other tokens.

        Raises:
            Unauthenticated: reason UNKNOWN_TOKEN.
        """
        holder = self._holders.get(_digest(token))
        if holder is None:
            raise Unauthenticated("the token is of no worker at work", reason="UNKNOWN_TOKEN")
        return holder

    def revoke(self, token: str) -> None:
        """Forget a token."""
        self._holders.pop(_digest(token), None)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
