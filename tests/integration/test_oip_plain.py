"""Plain requests are answered as every request is, to the last byte."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest

from tests.support.mutation import Mutator
from tests.support.oipmodels import Function, configuration, tensor
from tests.support.oipserver import OipServer, Versions, oip_server
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.inference.protocols.oip.plain import Patterns, Plain
from tidemill.inference.protocols.oip.servicer import INFER
from tidemill.tensors.dtypes import DataType

WORDS = ("add", "flat", "half", "text", "a", "b", "x", "y", "sum", "2")


def versions() -> Versions:
    add = Function(lambda a, b: {"sum": a + b, "a": a})
    same = Function(lambda x: {"y": x})
    int32 = DataType.INT32
    pair = [tensor("a", int32, (4,)), tensor("b", int32, (4,))]
    both = [tensor("sum", int32, (4,)), tensor("a", int32, (4,))]
    return {
        ("add", 1): (configuration("add", pair, both, max_batch=4), add),
        ("add", 2): (configuration("add", pair, [tensor("a", int32, (4,))], max_batch=4), add),
        ("flat", 1): (configuration("flat", [tensor("x", dims=(-1, 3))], [tensor("y", dims=(-1, 3))]), same),
        ("half", 1): (
            configuration("half", [tensor("x", DataType.FP16)], [tensor("y", DataType.FP16)]),
            same,
        ),
        ("brain", 1): (
            configuration("brain", [tensor("x", DataType.BF16)], [tensor("y", DataType.BF16)]),
            same,
        ),
        ("text", 1): (
            configuration("text", [tensor("x", DataType.BYTES)], [tensor("y", DataType.BYTES)]),
            same,
        ),
    }


@dataclass
class Pair:
    """The same models twice: one server reads plain requests as such, the other one parses every message."""

    plain: OipServer
    ordinary: OipServer
    calls: tuple[Any, ...]

    def ask(self, data: bytes) -> tuple[tuple[Any, Any], bytes]:
        """What both answer."""
        told: list[tuple[tuple[Any, Any], bytes]] = []
        for call in self.calls:
            try:
                told.append(((grpc.StatusCode.OK, ""), call(data, timeout=20)))
            except grpc.RpcError as error:
                told.append(((error.code(), error.details()), b""))
        assert told[0] == told[1], data
        return told[0]


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with oip_server(versions(), sample=0.0) as plain, oip_server(versions(), sample=0.0, plain=False) as ordinary:
        channels = [grpc.insecure_channel(server.address) for server in (plain, ordinary)]
        yield Pair(plain, ordinary, tuple(channel.unary_unary(INFER) for channel in channels))
        for channel in channels:
            channel.close()


def request(model: str, version: str = "", id: str = "", **inputs: Any) -> pb.ModelInferRequest:
    made = pb.ModelInferRequest(model_name=model, model_version=version, id=id)
    kinds = {np.dtype("i4"): "INT32", np.dtype("f4"): "FP32", np.dtype("f2"): "FP16"}
    for name, array in inputs.items():
        made.inputs.add(name=name, datatype=kinds[array.dtype], shape=array.shape)
        made.raw_input_contents.append(array.tobytes())
    return made


def added(rows: int, start: int = 0) -> dict[str, Any]:
    numbers = np.arange(start, start + 4 * rows, dtype="i4").reshape(rows, 4)
    return {"a": numbers, "b": 10 * numbers}


def test_answers_are_the_same_and_right(pair: Pair) -> None:
    for rows in (1, 3, 1, 4):
        for number in range(4):
            sent = request("add", "1", "" if number % 2 else f"nr {number} ü", **added(rows, number))
            status, data = pair.ask(sent.SerializeToString())
            answer = pb.ModelInferResponse.FromString(data)
            assert status[0] is grpc.StatusCode.OK
            assert (answer.id, answer.model_version) == (sent.id, "1")
            assert [tensor.name for tensor in answer.outputs] == ["sum", "a"]
            total = np.frombuffer(answer.raw_output_contents[0], "i4").reshape(rows, 4)
            assert np.array_equal(total, 11 * added(rows, number)["a"])
    for shape in ((2, 3), (1, 3), (2, 3)):
        pair.ask(request("flat", x=np.ones(shape, "f4")).SerializeToString())
    pair.ask(request("half", x=np.ones(5, "f2")).SerializeToString())


def test_what_is_like_a_known_one_and_wrong_is_refused_alike(pair: Pair) -> None:
    good = request("add", "1", "one", **added(2))
    for _ in range(3):
        assert pair.ask(good.SerializeToString())[0][0] is grpc.StatusCode.OK
    changes: tuple[dict[Any, Any], ...] = (
        {"raw_input_contents": [bytes(32)]},
        {"raw_input_contents": [bytes(32), bytes(28)]},
        {"raw_input_contents": [bytes(32), bytes(36)]},
        {"raw_input_contents": [bytes(32), bytes(32), b""]},
        {"raw_input_contents": [b"", b""]},
        {"id": "x" * 1025},
    )
    for change in changes:
        wrong = pb.ModelInferRequest()
        wrong.CopyFrom(good)
        for field, value in change.items():
            wrong.ClearField(field)
            wrong.MergeFrom(pb.ModelInferRequest(**{field: value}))
        for _ in range(3):
            assert pair.ask(wrong.SerializeToString())[0][0] is grpc.StatusCode.INVALID_ARGUMENT
    data = good.SerializeToString()
    name = data.index(b"one")
    for broken in (data[:-1], data + b"\x00", data[:name] + b"\xff\xff\xff" + data[name + 3 :], data + data):
        pair.ask(broken)
    assert pair.ask(data)[0][0] is grpc.StatusCode.OK


def test_a_beginning_means_what_it_means_to_the_version_that_is_there_now(pair: Pair) -> None:
    """The same bytes ask for the highest version, whichever that is."""
    asked = request("add", **added(1)).SerializeToString()
    both = [pb.ModelInferResponse.FromString(pair.ask(asked)[1]) for _ in range(3)]
    assert {answer.model_version for answer in both} == {"2"}
    models = [server.repository.models for server in (pair.plain, pair.ordinary)]
    for server, known in zip((pair.plain, pair.ordinary), models, strict=True):
        first = type(known["add"])({1: known["add"].versions[1]})
        server.repository.publish({**known, "add": first})
    try:
        answer = pb.ModelInferResponse.FromString(pair.ask(asked)[1])
        assert (answer.model_version, len(answer.outputs)) == ("1", 2)
    finally:
        for server, known in zip((pair.plain, pair.ordinary), models, strict=True):
            server.repository.publish(known)
    assert pb.ModelInferResponse.FromString(pair.ask(asked)[1]).model_version == "2"


@pytest.mark.parametrize("seed", range(4))
def test_requests_with_mistakes_are_answered_alike(pair: Pair, seed: int) -> None:
    text = pb.ModelInferRequest(model_name="text", raw_input_contents=[b"\x01\0\0\0a"])
    text.inputs.add(name="x", datatype="BYTES", shape=[1])
    brain = pb.ModelInferRequest(model_name="brain", raw_input_contents=[b"\x80\x3f"])
    brain.inputs.add(name="x", datatype="BF16", shape=[1])
    examples = [
        request("add", "1", "7", **added(2)),
        request("add", **added(1)),
        request("flat", id="é", x=np.ones((2, 3), "f4")),
        request("half", x=np.ones(3, "f2")),
        text,
        brain,
    ]
    for mutant in Mutator(seed, WORDS).mutants(examples, 120):
        data = mutant.SerializeToString()
        first = pair.ask(data)
        assert pair.ask(data) == first


def test_few_beginnings_are_kept() -> None:
    patterns = Patterns()
    for number in range(2000):
        data = request("add", str(number), **added(1)).SerializeToString()
        assert isinstance(patterns.read(data, pb.ModelInferRequest.FromString), pb.ModelInferRequest)
        assert isinstance(patterns.read(data, pb.ModelInferRequest.FromString), Plain)
    assert len(patterns._known) <= 256
    long = request("a" * 5000, **added(1)).SerializeToString()
    for _ in range(2):
        assert isinstance(patterns.read(long, pb.ModelInferRequest.FromString), pb.ModelInferRequest)
