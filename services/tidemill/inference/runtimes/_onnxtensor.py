"""Tensors of an ONNX file that lie in other files: what they say of where, and putting their bytes into the model."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tidemill.errors import Invalid
from tidemill.inference.runtimes._wire import BYTES, VARINT, Field, fields, length_delimited, varint, written

_DIMENSIONS, _TYPE, _RAW, _EXTERNAL, _LOCATION = 1, 2, 9, 13, 14
_OUTSIDE = 1
_MOST_FIELDS = 1000
_MOST_DIMENSIONS = 64
_BITS = {
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((25, 26), 2),
}
"""Bits of an element, by the number of ONNX's TensorProto.DataType; strings cannot lie in other files."""
_NUMBER = re.compile(r"[0-9]{1,18}")
_KNOWN = frozenset({"location", "offset", "length", "checksum"})


@dataclass(slots=True)
class Outside:
    """A tensor whose bytes lie in another file.

    Args:
        start, end: of its message in the model.
        location: name of the file, as the model says it.
        offset, length: of its bytes there; length None = up to the end of the file.
        kind: number of its element type.
        dimensions: its shape.
    """

    start: int
    end: int
    location: str = ""
    offset: int = 0
    length: int | None = None
    kind: int = 0
    dimensions: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes that its shape asks for. Raises Invalid."""
        if self.kind not in _BITS or any(dimension < 0 for dimension in self.dimensions):
            raise _refused("is of a type or a shape that cannot lie there")
        return (math.prod(self.dimensions) * _BITS[self.kind] + 7) // 8


def outside(data: bytes, start: int, end: int, found: Iterator[Field]) -> Outside | None:
    """What a tensor says of where it lies; None when it lies in the model.

    Args:
        data: the model.
        start, end: of the tensor's message in it.
        found: the message's fields.

    Raises:
        Invalid: it says so incompletely, twice, or in a way that has no meaning.
    """
    flagged = False
    entries: list[tuple[int, int]] = []
    for number, wire, first, last, _ in found:
        if number == _EXTERNAL:
            if wire != BYTES or len(entries) >= len(_KNOWN):
                raise _refused("is described in a way that has no meaning")
            entries.append((first, last))
        elif number == _LOCATION:
            flagged = wire != VARINT or first != 0
    if not flagged and not entries:
        return None
    if not flagged or not entries:
        raise _refused("is described incompletely")
    tensor = Outside(start, end)
    _describe(tensor, [_entry(data, *entry) for entry in entries])
    _measure(tensor, data)
    return tensor


def content(tensor: Outside, file: bytes) -> memoryview:
    """Its bytes in this file.

    Raises:
        Invalid: they are not within the file, or not as many as its shape asks for.
    """
    length = len(file) - tensor.offset if tensor.length is None else tensor.length
    if tensor.offset > len(file) or length > len(file) - tensor.offset:
        raise _refused(f"is not within its file, which has {len(file)} bytes")
    if tensor.size > length or (tensor.length is not None and tensor.size != length):
        raise _refused(f"has {length} bytes in its file, but {tensor.size} by its shape")
    return memoryview(file)[tensor.offset : tensor.offset + tensor.size]


def with_content(data: bytes, tensor: Outside, found: memoryview) -> bytes:
    """The tensor's message with these bytes in it."""
    parts: list[bytes] = []
    for number, wire, first, last, begin in fields(data, tensor.start, tensor.end):
        if number in (_RAW, _EXTERNAL, _LOCATION):
            continue
        parts.append(data[begin:last] if wire != VARINT else written(number << 3 | VARINT) + written(first))
    return b"".join((*parts, length_delimited(_RAW, found)))


def _entry(data: bytes, start: int, end: int) -> tuple[str, str]:
    """One pair of key and value."""
    pair = {1: "", 2: ""}
    for number, wire, first, last, _ in fields(data, start, end):
        if wire != BYTES or number not in pair or pair[number]:
            raise _refused("is described in a way that has no meaning")
        try:
            pair[number] = data[first:last].decode()
        except UnicodeDecodeError as error:
            raise _refused("is described in a way that has no meaning") from error
    return pair[1], pair[2]


def _describe(tensor: Outside, pairs: list[tuple[str, str]]) -> None:
    said = dict(pairs)
    if len(said) != len(pairs) or not said.keys() <= _KNOWN or not said.get("location"):
        raise _refused("is described in a way that has no meaning")
    for key in ("offset", "length"):
        if key in said and not _NUMBER.fullmatch(said[key]):
            raise _refused(f"has an {key} that is no number" if key == "offset" else f"has a {key} that is no number")
    tensor.location = said["location"]
    tensor.offset = int(said.get("offset", "0"))
    tensor.length = int(said["length"]) if "length" in said else None


def _measure(tensor: Outside, data: bytes) -> None:
    """Type and shape."""
    for seen, (number, wire, first, last, _) in enumerate(fields(data, tensor.start, tensor.end)):
        if seen >= _MOST_FIELDS or len(tensor.dimensions) > _MOST_DIMENSIONS:
            raise _refused("has too many dimensions")
        if number == _TYPE and wire == VARINT:
            tensor.kind = first
        elif number == _DIMENSIONS and wire == VARINT:
            tensor.dimensions.append(_signed(first))
        elif number == _DIMENSIONS and wire == BYTES:
            tensor.dimensions += _packed(data, first, last)


def _packed(data: bytes, start: int, end: int) -> list[int]:
    if end - start > 10 * _MOST_DIMENSIONS:
        raise _refused("has too many dimensions")
    found, position = [], start
    while position < end:
        value, position = varint(data, position, end)
        found.append(_signed(value))
    return found


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _refused(problem: str) -> Invalid:
    return Invalid(f"a weight of the model in another file (external data) {problem}", reason="MODEL_REFUSED")
