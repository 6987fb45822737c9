"""Messages taken apart without a copy: what protobuf would find, or nothing."""

import pytest

from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.rpc.frames import frame, split


@pytest.mark.parametrize("size", [0, 1, 127, 128, 70_000])
@pytest.mark.parametrize("index", [0, 1, 300, 2**40])
def test_what_was_framed_is_split(size: int, index: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    inner = frame(pb.BlockData(block=index).SerializeToString(), pb.BlockData.DATA_FIELD_NUMBER, [data])
    message = b"".join(frame(b"", pb.PushRequest.BLOCK_FIELD_NUMBER, inner))
    outer = split(message, pb.PushRequest.BLOCK_FIELD_NUMBER)
    assert outer is not None
    assert outer[0] == b""
    found = split(outer[1], pb.BlockData.DATA_FIELD_NUMBER)
    assert found is not None
    assert pb.BlockData.FromString(found[0]).block == index
    assert found[1] == data
    assert pb.PushRequest.FromString(message).block == pb.BlockData(block=index, data=data)


def test_what_comes_in_another_order_is_left_to_protobuf() -> None:
    message = pb.BlockData(block=3, data=b"abc", rows=b"1234").SerializeToString()
    assert split(message, pb.BlockData.DATA_FIELD_NUMBER) is None
    found = split(message, 3)
    assert found is not None
    assert bytes(found[1]) == b"1234"


def test_what_is_broken_is_never_split() -> None:
    message = pb.BlockData(block=300, data=b"abcdefgh").SerializeToString()
    for size in range(len(message)):
        assert split(message[:size], pb.BlockData.DATA_FIELD_NUMBER) is None
    assert split(b"\xff" * 40, 2) is None
    assert split(b"\x0d1234", 2) is None
