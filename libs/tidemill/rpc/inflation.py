"""Compressed messages of requests, inflated here and not by gRPC, which does so before it looks how large they become:
a few kilobytes could take all memory."""

import zlib
from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError

from tidemill.errors import Exhausted

T = TypeVar("T")
OPTION = ("grpc.per_message_decompression", 0)
"""Has a server give compressed messages to its handlers as they came."""
PROBE = 1 << 16
"""Most bytes of a request for health or reflection."""
_GZIP, _ZLIB = b"\x1f\x8b", b"\x78"


def inflated(data: bytes, limit: int) -> bytes:
    """A message as its sender had it.

    Which messages are compressed, gRPC does not say to handlers. No message begins as gzip does, with a field of a type
    that does not exist. The beginning of zlib's format might be that of a message: one that cannot be inflated is
    taken for that.

    Args:
        data: as it came.
        limit: most bytes that it may have.

    Raises:
        Exhausted: it has more.
        DecodeError: it is compressed, and broken.
    """
    if not data.startswith((_GZIP, _ZLIB)):
        return data
    gzip = data.startswith(_GZIP)
    if not gzip and (len(data) < 2 or int.from_bytes(data[:2], "big") % 31):
        return data
    stream = zlib.decompressobj(31 if gzip else 15)
    try:
        found = stream.decompress(data, limit + 1)
    except zlib.error as error:
        if gzip:
            raise DecodeError("compressed, and broken") from error
        return data
    if len(found) > limit:
        raise Exhausted(f"the request has more than {limit} bytes, inflated", reason="MESSAGE_TOO_LARGE")
    if not stream.eof:
        if gzip:
            raise DecodeError("compressed, and cut off")
        return data
    return found


def inflating(deserializer: Callable[[bytes], T], limit: int = PROBE) -> Callable[[bytes], T]:
    """`deserializer`, of messages that may be compressed."""

    def read(data: bytes) -> T:
        return deserializer(inflated(data, limit))

    return read
