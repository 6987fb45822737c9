"""Messages that are not read: refused as the caller's fault, where gRPC alone would call it the server's."""

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from tidemill.errors import Invalid, TidemillError
from tidemill.rpc import density


@dataclass(frozen=True, slots=True)
class _Unread:
    """In place of a request."""

    error: TidemillError


def tolerant(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """`deserializer`, for handlers that `check` what it gives."""
    if deserializer is None:
        return None
    kind = getattr(getattr(deserializer, "__self__", None), "DESCRIPTOR", None)

    def read(data: bytes) -> Any:
        try:
            if kind is not None:
                density.check(data, kind)
            return deserializer(data)
        except DecodeError:
            return _Unread(Invalid("the request is no message that this method takes", reason="MALFORMED_REQUEST"))
        except TidemillError as error:
            return _Unread(error)

    return read


def unread(request: Any) -> bool:
    """Whether a request could not be read."""
    return type(request) is _Unread


def check(request: Any) -> None:
    """Return when a request could be read. Raises Invalid, Exhausted."""
    if type(request) is _Unread:
        raise request.error


def checked(requests: Iterator[Any]) -> Iterator[Any]:
    """The same requests. Raises Invalid or Exhausted at one that could not be read."""
    for request in requests:
        check(request)
        yield request


async def checked_async(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The same requests. Raises Invalid or Exhausted at one that could not be read."""
    async for request in requests:
        check(request)
        yield request
