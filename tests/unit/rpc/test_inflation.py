"""Compressed messages are inflated up to a bound, whatever server takes them."""

import gzip
import zlib

import pytest
from google.protobuf.message import DecodeError

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Exhausted
from tidemill.rpc.inflation import inflated, inflating

MESSAGE = pb.ModelInferRequest(model_name="m", id="x" * 1000).SerializeToString()


@pytest.mark.parametrize("data", [MESSAGE, gzip.compress(MESSAGE), *(zlib.compress(MESSAGE, n) for n in (1, 6, 9))])
def test_messages_are_as_they_were_sent(data: bytes) -> None:
    assert inflated(data, len(MESSAGE)) == MESSAGE
    assert inflating(pb.ModelInferRequest.FromString)(data).model_name == "m"


@pytest.mark.parametrize("data", [gzip.compress(MESSAGE), zlib.compress(MESSAGE), gzip.compress(bytes(100 << 20))])
def test_no_more_than_the_bound_is_inflated(data: bytes) -> None:
    with pytest.raises(Exhausted, match="more than"):
        inflated(data, len(MESSAGE) - 1)


@pytest.mark.parametrize("data", [b"\x1f\x8b", b"\x1f\x8b\x08" + bytes(40), gzip.compress(MESSAGE)[:-9]])
def test_what_is_broken_is_no_message(data: bytes) -> None:
    with pytest.raises(DecodeError):
        inflated(data, 1 << 20)


@pytest.mark.parametrize("value", [0x01, 0x5E, 0x9C01, 0xDA01, 0x20])
def test_a_message_that_begins_like_zlib_is_a_message(value: int) -> None:
    """Field 15 as a number: its tag is the first byte of zlib's format, and some numbers are the second."""
    data = b"\x78" + value.to_bytes(2 if value > 0xFF else 1, "big") + MESSAGE
    assert inflated(data, 1 << 20) == data


@pytest.mark.parametrize("data", [b"", b"\x78", b"\x1f"])
def test_short_messages(data: bytes) -> None:
    assert inflated(data, 10) == data
