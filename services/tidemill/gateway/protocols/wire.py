"""Tensors into serialized infer requests and out of serialized answers: one copy in, none out.

A message object would copy each tensor when it is filled and once more when it is serialized. Repeated bytes fields are
simple on the wire (field number and type, length, bytes) and may stand anywhere among the other fields, so only those
others go through message objects.
"""

from collections.abc import Iterator, Sequence

from google.protobuf.message import DecodeError

from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.pieces import Buffer

_LENGTH_DELIMITED = 2
_FIXED = {1: 8, 5: 4}
"""Wire types of a fixed size, in bytes."""


def _tag(field: int) -> int:
    return field << 3 | _LENGTH_DELIMITED


_RAW_INPUT = bytes([_tag(pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER)])
_RAW_OUTPUT = _tag(pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER)


def serialize(request: pb.ModelInferRequest, tensors: Sequence[Buffer]) -> bytes:
    """The serialized `request` with `tensors` as its raw contents."""
    parts: list[Buffer] = [request.SerializeToString()]
    for tensor in tensors:
        parts += [_RAW_INPUT, _varint(len(tensor)), tensor]
    return b"".join(parts)


def split(data: bytes) -> tuple[pb.ModelInferResponse, list[memoryview]]:
    """An answer without its raw contents, and these as views of `data`.

    Raises:
        Internal: `data` is no serialized answer.
    """
    whole = memoryview(data)
    rest, tensors = [], []
    try:
        for tag, start, content, end in _fields(whole):
            if tag == _RAW_OUTPUT:
                tensors.append(whole[content:end])
            else:
                rest.append(whole[start:end])
        return pb.ModelInferResponse.FromString(b"".join(rest)), tensors
    except (DecodeError, IndexError) as error:
        raise errors.Internal("the inference service sent what is no answer", reason="BAD_RESPONSE") from error


def _fields(data: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """(tag, start, start of the content, end) of each field."""
    position = 0
    while position < len(data):
        start = position
        tag, position = _read(data, position)
        kind = tag & 7
        content = position
        if kind == _LENGTH_DELIMITED:
            length, content = _read(data, position)
            position = content + length
        elif kind == 0:
            _, position = _read(data, position)
        elif kind in _FIXED:
            position += _FIXED[kind]
        else:
            raise DecodeError("a group")
        if position > len(data):
            raise DecodeError("a field runs over the end")
        yield tag, start, content, position


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 0x7F:
        made.append(value & 0x7F | 0x80)
        value >>= 7
    made.append(value)
    return bytes(made)


def _read(data: memoryview, position: int) -> tuple[int, int]:
    """The number at `position`, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise DecodeError("a number of too many bytes")
