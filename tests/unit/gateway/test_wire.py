"""Tensors in serialized messages, without message objects around them."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.protocols import wire

tensors = st.lists(st.binary(max_size=300), max_size=4)


@given(raw=tensors, name=st.text(max_size=5))
def test_requests_are_what_protobuf_reads(raw: list[bytes], name: str) -> None:
    request = pb.ModelInferRequest(model_name=name, id="7")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2])
    found = pb.ModelInferRequest.FromString(wire.serialize(request, [memoryview(item) for item in raw]))
    request.raw_input_contents.extend(raw)
    assert found == request


@given(raw=tensors, name=st.text(max_size=5))
def test_answers_come_apart(raw: list[bytes], name: str) -> None:
    answer = pb.ModelInferResponse(model_name=name, raw_output_contents=raw)
    answer.outputs.add(name="y", datatype="INT8", shape=[2])
    answer.parameters["n"].int64_param = 2**40
    rest, found = wire.split(answer.SerializeToString())
    assert [bytes(item) for item in found] == raw
    del answer.raw_output_contents[:]
    assert rest == answer


def test_tensors_are_not_copied_out_of_an_answer() -> None:
    data = pb.ModelInferResponse(raw_output_contents=[b"x" * 1000]).SerializeToString()
    (tensor,) = wire.split(data)[1]
    assert tensor.obj is data


def test_fields_of_later_protocols_are_passed_over() -> None:
    known = pb.ModelInferResponse(id="7").SerializeToString()
    later = bytes([15 << 3, 200, 1, 14 << 3 | 1, *range(8), 13 << 3 | 5, *range(4)])
    rest, _ = wire.split(later + known)
    assert rest.id == "7"


@given(data=st.binary(max_size=40))
def test_any_bytes_are_an_answer_or_our_fault(data: bytes) -> None:
    with contextlib.suppress(errors.Internal):
        wire.split(data)


@pytest.mark.parametrize("data", [b"\x32\x05abc", b"\x32", b"\x32\xff", b"\x0b", b"\xff" * 20])
def test_broken_answers_are_our_fault(data: bytes) -> None:
    with pytest.raises(errors.Internal):
        wire.split(data)
