"""The id of the request in work, which all calls made on its behalf carry on."""

import secrets
from contextvars import ContextVar

_request_id: ContextVar[str] = ContextVar("request_id", default="")


def new_id() -> str:
    """A new request id."""
    return secrets.token_hex(8)


def begin_request(given: str) -> str:
    """The id of the request that begins in this context: `given` when that is fit to be logged, else a new one."""
    fit = given.isascii() and given.isprintable() and 0 < len(given) <= 64
    _request_id.set(given if fit else new_id())
    return _request_id.get()


def request_id() -> str:
    """The id of the request in work, for the calls made on its behalf; a new one outside of any."""
    return _request_id.get() or new_id()
