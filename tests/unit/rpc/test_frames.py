"""Messages written by hand are the ones that protobuf writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.rpc import allocator
from tidemill.rpc.frames import frame


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.binary(max_size=300))
def test_a_frame_is_what_protobuf_writes(version: int, index: int, data: bytes) -> None:
    expected = pb.PullResponse(version=version, block=pb.BlockData(block=index, data=data))
    inner = frame(pb.BlockData(block=index).SerializeToString(), pb.BlockData.DATA_FIELD_NUMBER, [memoryview(data)])
    outer = frame(pb.PullResponse(version=version).SerializeToString(), pb.PullResponse.BLOCK_FIELD_NUMBER, inner)
    assert pb.PullResponse.FromString(b"".join(outer)) == expected
    if data:
        assert b"".join(outer) == expected.SerializeToString()


@pytest.mark.parametrize("size", [127, 128, 16383, 16384, 2**20, 2**21])
def test_lengths_of_every_size(size: int) -> None:
    data = bytes(size)
    assert b"".join(frame(b"", 2, [data])) == pb.BlockData(data=data).SerializeToString()


def test_fields_with_large_numbers() -> None:
    assert b"".join(frame(b"", 2000, [b"x"])) == bytes([0x82, 0x7D, 0x01]) + b"x"


def test_the_allocator_takes_its_thresholds() -> None:
    assert allocator.keep_chunks()
