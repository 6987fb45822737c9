"""The wire format of protobuf, as far as walking over a message and writing a field need it."""

from collections.abc import Iterator

from tidemill.errors import Invalid

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Field = tuple[int, int, int, int, int]
"""(number, wire type, first, last, begin): the borders of its bytes, and where it begins with its key.

For a varint, first and last are its value."""


def fields(data: bytes, position: int, end: int) -> Iterator[Field]:
    """Each field of the message in `data[position:end]`. Raises Invalid."""
    while position < end:
        begin = position
        key, position = varint(data, position, end)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, position = varint(data, position, end)
            yield number, wire, value, value, begin
            continue
        if wire == BYTES:
            size, position = varint(data, position, end)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise _broken()
        if size > end - position:
            raise _broken()
        yield number, wire, position, position + size, begin
        position += size


def varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """The number that begins at `position`, and the position after it."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & (2**64 - 1), position
        shift += 7
    raise _broken()


def _broken() -> Invalid:
    return Invalid("the file is not an ONNX model: its encoding is broken", reason="MODEL_REFUSED")


def length_delimited(number: int, data: bytes | memoryview) -> bytes:
    """A field of bytes, as it stands in a message."""
    return b"".join((written(number << 3 | BYTES), written(len(data)), data))


def written(value: int) -> bytes:
    """A number as a varint."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*found, value))
