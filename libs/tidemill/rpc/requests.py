"""The id of the request in work, which all calls made on its behalf carry on."""

import secrets
from contextvars import ContextVar

_request_id: ContextVar["RequestId | None"] = ContextVar("request_id", default=None)


class RequestId:
    """The id of one request; made up when it is first asked for, as most requests never need it."""

    __slots__ = ("_id",)

    def __init__(self, given: str = "") -> None:
        self._id = given

    def __str__(self) -> str:
        self._id = self._id or new_id()
        return self._id


def new_id() -> str:
    """A new request id."""
    return secrets.token_hex(8)


def begin_request(given: str) -> RequestId:
    """The id of the request that begins in this context: `given` when that is fit to be logged, else a new one."""
    found = RequestId(given if 0 < len(given) <= 64 and given.isascii() and given.isprintable() else "")
    _request_id.set(found)
    return found


def request_id() -> str:
    """The id of the request in work, for the calls made on its behalf; a new one outside of any."""
    found = _request_id.get()
    return new_id() if found is None else str(found)
