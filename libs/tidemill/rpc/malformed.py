"""Messages that cannot be read: refused as the caller's fault, where gRPC alone would call it the server's."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from google.protobuf.message import DecodeError

from tidemill.errors import Invalid

_MALFORMED = object()


def tolerant(deserializer: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """`deserializer`, for handlers that `check` what it gives."""
    if deserializer is None:
        return None

    def read(data: bytes) -> Any:
        try:
            return deserializer(data)
        except DecodeError:
            return _MALFORMED

    return read


def check(request: Any) -> None:
    """Return when a request could be read. Raises Invalid."""
    if request is _MALFORMED:
        raise Invalid("the request is no message that this method takes", reason="MALFORMED_REQUEST")


def checked(requests: Iterator[Any]) -> Iterator[Any]:
    """The same requests. Raises Invalid at one that could not be read."""
    for request in requests:
        check(request)
        yield request


async def checked_async(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The same requests. Raises Invalid at one that could not be read."""
    async for request in requests:
        check(request)
        yield request
