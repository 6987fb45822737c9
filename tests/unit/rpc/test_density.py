"""Messages of very many parts are refused before they are parsed."""

import time
import tracemalloc
from typing import Any

import pytest
from google.protobuf.message import DecodeError

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Exhausted, Invalid, TidemillError
from tidemill.rpc import density
from tidemill.rpc.malformed import check, tolerant

MANY = 4 << 20
NAME = b"\x0a\x01m"


def delimited(tag: int, content: bytes) -> bytes:
    size, left = b"", len(content)
    while left > 0x7F:
        size += bytes([left & 0x7F | 0x80])
        left >>= 7
    return bytes([tag]) + size + bytes([left]) + content


BOMBS = {
    "inputs": NAME + b"\x2a\x00" * MANY,
    "outputs": NAME + b"\x32\x00" * MANY,
    "parameters": NAME + b"\x22\x00" * MANY,
    "tensors": NAME + b"\x3a\x00" * MANY,
    "unknown fields": NAME + b"\x78\x00" * MANY,
    "parameters of an input": NAME + delimited(0x2A, b"\x22\x00" * MANY),
    "strings of an input": NAME + delimited(0x2A, delimited(0x2A, b"\x42\x00" * MANY)),
    "numbers that are not packed": NAME + delimited(0x2A, delimited(0x2A, b"\x18\x00" * MANY)),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_many_parts_are_refused_before_anything_is_made_of_them(bomb: str) -> None:
    read = tolerant(pb.ModelInferRequest.FromString)
    assert read is not None
    tracemalloc.start()
    try:
        with pytest.raises(Exhausted, match="the request has more than 65536 parts"):
            check(read(BOMBS[bomb]))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_refusing_takes_no_longer_for_a_larger_message() -> None:
    def took(data: bytes) -> float:
        begun = time.perf_counter()
        with pytest.raises(TidemillError):
            density.check(data, pb.ModelInferRequest.DESCRIPTOR)
        return time.perf_counter() - begun

    assert min(took(BOMBS["inputs"] * 4) for _ in range(5)) < 20 * min(took(BOMBS["inputs"]) for _ in range(5))


def test_large_tensors_are_few_parts() -> None:
    request: Any = pb.ModelInferRequest(model_name="m", raw_input_contents=[bytes(1 << 20)] * 8)
    for number in range(8):
        tensor = request.inputs.add(name=str(number), datatype="INT64", shape=[1, 2**17])
        tensor.contents.int64_contents.extend(range(2**15))
        tensor.parameters["own"].string_param = "x" * 300
    data = request.SerializeToString()
    density.check(data, request.DESCRIPTOR)
    read = tolerant(pb.ModelInferRequest.FromString)
    assert read is not None
    assert read(data) == request


def test_small_messages_are_not_looked_at() -> None:
    density.check(b"\x2a\x00" * (density.SMALL // 2), pb.ModelInferRequest.DESCRIPTOR)


@pytest.mark.parametrize("end", [b"\x2a", b"\x2a\xff\xff", b"\x2a\x05x", b"\x0b", b"\x0e", b"\x09\x00", b"\xff" * 11])
def test_what_is_no_message_is_refused_as_such(end: bytes) -> None:
    data = delimited(0x3A, bytes(density.SMALL)) + end
    with pytest.raises(DecodeError):
        density.check(data, pb.ModelInferRequest.DESCRIPTOR)
    read = tolerant(pb.ModelInferRequest.FromString)
    assert read is not None
    with pytest.raises(Invalid, match="no message that this method takes"):
        check(read(data))
