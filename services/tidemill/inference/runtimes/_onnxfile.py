"""A walk over the wire format of an ONNX file that finds what would make a runtime open other files.

Reads the protobuf encoding itself, so that it costs no dependency and no second copy of the weights: bytes of tensors
are stepped over. Field numbers are those of ONNX's published schema (onnx.proto, IR version 13).
"""

from collections.abc import Iterator

from tidemill.errors import Invalid

MAX_FIELDS = 5_000_000
"""Fields that are looked at before a file counts as hostile: seconds of work, and far above any graph."""
MAX_DEPTH = 64
"""Messages inside of each other, as in graphs in attributes of nodes of graphs."""

_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _TENSOR, _SPARSE, _FUNCTION, _TRAINING = range(8)
_INSIDE: dict[int, dict[int, int]] = {
    _MODEL: {7: _GRAPH, 20: _TRAINING, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _TRAINING: {1: _GRAPH, 2: _GRAPH},
    _TENSOR: {},
}
_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14
_NODE_OPERATOR, _PRECOMPILED = 4, b"EPContext"
_MODEL_GRAPH = 7
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


Field = tuple[int, int, int, int]


def check_self_contained(data: bytes) -> None:
    """Return when `data` is an ONNX model that holds all of its weights.

    Raises:
        Invalid: it is not encoded as one; a tensor anywhere in it (also in subgraphs and functions) lies in another
            file; or a node wraps a precompiled model, which may name a file.
    """
    if not any(number == _MODEL_GRAPH for number, *_ in _fields(data, 0, len(data))):
        raise Invalid("the file is not an ONNX model: it holds no graph", reason="MODEL_REFUSED")
    seen = 0
    waiting = [(_MODEL, 0, len(data), 0)]
    while waiting:
        kind, start, end, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise Invalid(f"the model is nested deeper than {MAX_DEPTH} messages", reason="MODEL_REFUSED")
        inside = _INSIDE[kind]
        for number, wire, first, last in _fields(data, start, end):
            seen += 1
            if seen > MAX_FIELDS:
                raise Invalid(f"the model has more than {MAX_FIELDS} fields", reason="MODEL_REFUSED")
            if kind == _TENSOR:
                _check_tensor(number, first)
            elif kind == _NODE and number == _NODE_OPERATOR and data[first:last] == _PRECOMPILED:
                raise Invalid("the model holds a precompiled node (EPContext)", reason="MODEL_REFUSED")
            elif wire == _BYTES and number in inside:
                waiting.append((inside[number], first, last, depth + 1))


def _check_tensor(number: int, value: int) -> None:
    if number == _TENSOR_EXTERNAL_DATA or (number == _TENSOR_DATA_LOCATION and value != 0):
        raise Invalid("the model keeps weights in other files (external data)", reason="MODEL_REFUSED")


def _fields(data: bytes, position: int, end: int) -> Iterator[Field]:
    """(number, wire type, first, last) of each field of the message in `data[position:end]`.

    First and last are the borders of its bytes; for a varint, first is its value.
    """
    while position < end:
        key, position = _varint(data, position, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, position = _varint(data, position, end)
            yield number, wire, value, value
            continue
        if wire == _BYTES:
            size, position = _varint(data, position, end)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise _broken()
        if size > end - position:
            raise _broken()
        yield number, wire, position, position + size
        position += size


def _varint(data: bytes, position: int, end: int) -> tuple[int, int]:
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
