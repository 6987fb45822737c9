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
