"""Bulk messages written without protobuf's copies.

For a message with a megabyte in it protobuf grows its buffer several times, which costs more than sending it. But the
wire format is simple: a message is its fields one after the other, in any order, and a `bytes` or message field is its
number, its length and its content. So the large field is put behind the others by hand, and everything is joined once.
"""

from collections.abc import Sequence
from typing import TypeAlias

Piece: TypeAlias = bytes | memoryview

_LENGTH_DELIMITED = 2
"""Wire type of `bytes`, strings and messages."""


def frame(other: bytes, field: int, content: Sequence[Piece]) -> list[Piece]:
    """The pieces of a message, to be joined or to be the content of a frame around it.

    Args:
        other: all its other fields, serialized.
        field: number of the `bytes` or message field.
        content: that field's content in pieces; views must be of bytes.
    """
    length = sum(map(len, content))
    return [b"".join((other, _varint(field << 3 | _LENGTH_DELIMITED), _varint(length))), *content]


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def split(message: Piece, field: int) -> tuple[bytes, memoryview] | None:
    """The reverse of `frame`, without a copy: all other fields, and the content of the field that comes last.

    Args:
        message: serialized.
        field: number of the `bytes` or message field.

    Returns:
        None when the message does not end with that field, or has fields of other kinds than these and numbers before
        it: then protobuf is to be asked.
    """
    view, at = memoryview(message), 0
    try:
        while at < len(view):
            key, content = _number(view, at)
            number, after = _number(view, content)
            if key & 7 == _LENGTH_DELIMITED:
                after += number
                if key >> 3 == field:
                    return (bytes(view[:at]), view[after - number :]) if after == len(view) else None
            elif key & 7:
                return None
            at = after
    except IndexError:
        pass
    return None


def _number(view: memoryview, at: int) -> tuple[int, int]:
    """A varint, and the position after it."""
    found = shift = 0
    while True:
        byte = view[at]
        found |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80 or shift > 63:
            return found, at
