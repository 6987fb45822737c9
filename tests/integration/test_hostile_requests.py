"""Requests that would cost far more than they are worth: refused at once, for what they are."""

import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from tests.support.oipexamples import versions
from tests.support.oipserver import OipServer, oip_server
from tidemill.api.compat.inference import service_pb2 as pb

INVALID, EXHAUSTED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.fixture(scope="module")
def server() -> Iterator[OipServer]:
    with oip_server(versions(), sample=0.0, share=True) as running:
        yield running


def refused(server: OipServer, request: Any, method: str = "ModelInfer", **options: Any) -> tuple[Any, str]:
    """Code and text of the refusal."""
    with pytest.raises(grpc.RpcError) as raised:
        getattr(server.stub, method)(request, timeout=20, **options)
    error: Any = raised.value
    return error.code(), error.details()


def raw(data: bytes, *shape: int, name: str = "a", model: str = "add") -> Any:
    request: Any = pb.ModelInferRequest(model_name=model, raw_input_contents=[data])
    request.inputs.add(name=name, datatype="INT32", shape=shape)
    return request


SHAPES = {
    "a wrapped product": (16, 2**60 + 2),
    "a gigabyte": (2**28, 4),
    "a negative dimension": (-1, 4),
    "the smallest dimension": (-(2**63), 4),
    "the largest dimension": (2**63 - 1, 4),
    "many dimensions": (1,) * 10_000,
    "no rows": (0, 4),
    "no dimensions": (),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_that_lie(server: OipServer, shape: str) -> None:
    code, text = refused(server, raw(b"\0\0\0\0", *SHAPES[shape]))
    assert code is INVALID
    assert len(text) < 1024


def counts() -> dict[str, Any]:
    """Requests with too many of something."""
    inputs, outputs, parameters, entries = (raw(bytes(16), 1, 4) for _ in range(4))
    for number in range(5_000):
        inputs.inputs.add()
        outputs.outputs.add(name=str(number))
        parameters.parameters[str(number)].bool_param = True
        entries.raw_input_contents.append(b"")
    long = raw(bytes(16), 1, 4)
    long.id = "x" * 5000
    wide = raw(bytes(16), 1, 4)
    wide.parameters["own"].string_param = "x" * (1 << 20)
    sequence = raw(bytes(16), 1, 4)
    sequence.parameters["sequence_id"].string_param = "x" * 5000
    return {
        "inputs": inputs, "outputs": outputs, "parameters": parameters, "entries": entries, "id": long,
        "parameter": wide, "sequence": sequence,
    }  # fmt: skip


@pytest.mark.parametrize("what", sorted(counts()))
def test_too_many_and_too_long(server: OipServer, what: str) -> None:
    code, text = refused(server, counts()[what])
    assert code is INVALID
    assert len(text) < 1024
    (reply,) = server.stub.ModelStreamInfer(iter([counts()[what]]), timeout=20)
    assert reply.error_message == text


def test_a_message_of_millions_of_parts(server: OipServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as raised:
            call(b"\x2a\x00" * (3 << 20), timeout=20)
    error: Any = raised.value
    assert error.code() is EXHAUSTED
    assert error.details() == "the request has more than 65536 parts"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_what_inflates_to_more_than_a_message(server: OipServer, compression: Any) -> None:
    code, text = refused(server, raw(bytes(64 << 20), 2**22, 4), compression=compression)
    assert code is EXHAUSTED
    assert "larger than max" in text
    assert server.stub.ServerLive(pb.ServerLiveRequest(), timeout=20).live


@pytest.mark.parametrize("depth", [100, 10_000, 100_000])
def test_messages_in_messages(server: OipServer, depth: int) -> None:
    """Unknown groups inside of each other: the parser is not led down."""
    with grpc.insecure_channel(server.address) as channel:
        call: Any = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as raised:
            call(b"\xa3\x06" * depth + b"\xa4\x06" * depth, timeout=20)
    error: Any = raised.value
    assert error.code() in (INVALID, grpc.StatusCode.NOT_FOUND)
    assert server.stub.ServerLive(pb.ServerLiveRequest(), timeout=20).live


def test_refusals_are_quick(server: OipServer) -> None:
    """Of the kinds above the median takes no tenth of a second."""
    took = []
    for request in [raw(b"\0\0\0\0", *shape) for shape in SHAPES.values()] * 3:
        begun = time.monotonic()
        refused(server, request)
        took.append(time.monotonic() - begun)
    assert sorted(took)[len(took) // 2] < 0.1


@pytest.mark.parametrize("text", ['\n{"level": "error"}', "\r\n", "%s%n", "\x1b[31m", "../../etc/passwd", "'; --"])
def test_texts_of_callers_come_back_as_they_were_or_not_at_all(server: OipServer, text: str) -> None:
    for request in (raw(bytes(16), 1, 4, model=text), raw(bytes(16), 1, 4, name=text)):
        code, said = refused(server, request)
        assert code in (INVALID, grpc.StatusCode.NOT_FOUND)
        assert "Traceback" not in said
    for method, request in (
        ("SystemSharedMemoryRegister", pb.SystemSharedMemoryRegisterRequest(name="r", key=text, byte_size=1)),
        ("TraceSetting", pb.TraceSettingRequest(model_name=text)),
    ):
        code, said = refused(server, request, method)
        assert code in (INVALID, grpc.StatusCode.NOT_FOUND)
        assert "/dev/shm" not in said
