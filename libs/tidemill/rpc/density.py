"""How many parts a message has, before it is parsed: an empty part is two bytes that become a hundred in memory."""

from functools import cache
from typing import Any

from google.protobuf.message import DecodeError

from tidemill.errors import Exhausted

SMALL = 1 << 17
"""Bytes up to which a message may have any number of parts."""
MOST = 1 << 16
"""Most parts of a larger message: fields of it, and of the messages in it; packed numbers are one."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def check(data: bytes, kind: Any, most: int = MOST) -> None:
    """Return when `data` has at most `most` parts, so that what is parsed of it has about the same size.

    Args:
        data: a serialized message.
        kind: its descriptor.
        most: parts that it may have.

    Raises:
        Exhausted: it has more.
        DecodeError: it is no message.
    """
    if len(data) <= SMALL:
        return
    waiting = [(0, len(data), kind)]
    parts = 0
    try:
        while waiting:
            position, end, message = waiting.pop()
            inner = _messages(message)
            while position < end:
                parts += 1
                if parts > most:
                    raise Exhausted(f"the request has more than {most} parts", reason="TOO_MANY_PARTS")
                tag, position = _number(data, position)
                position, length = _skipped(data, position, tag & 7)
                if length and (found := inner.get(tag >> 3)) is not None:
                    waiting.append((position - length, position, found))
            if position != end:
                raise DecodeError("a field runs over the end of its message")
    except IndexError as error:
        raise DecodeError("a number runs over the end") from error


def _skipped(data: bytes, position: int, kind: int) -> tuple[int, int]:
    """Where a field of this wire type ends, and how many bytes of content it has, if it has a length."""
    if kind == _BYTES:
        length, position = _number(data, position)
        return position + length, length
    if kind == _VARINT:
        return _number(data, position)[1], 0
    if kind == _FIXED64:
        return position + 8, 0
    if kind == _FIXED32:
        return position + 4, 0
    raise DecodeError("a group")


def _number(data: bytes, position: int) -> tuple[int, int]:
    """The number at `position`, and where it ends."""
    value = data[position]
    position += 1
    if value < 0x80:
        return value, position
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DecodeError("a number of too many bytes")


@cache
def _messages(kind: Any) -> dict[int, Any]:
    """The types of the fields that are messages, by number."""
    return {field.number: field.message_type for field in kind.fields if field.message_type is not None}
