"""Infer requests and answers between JSON with binary data and messages."""

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.protocols import oip, wire
from tidemill.tensors import codec
from tidemill.tensors.dtypes import DataType

X = {"name": "x", "datatype": "FP32", "shape": [2, 2]}


def parse(document: Any, tail: bytes = b"") -> tuple[pb.ModelInferRequest, oip.Binary]:
    text = json.dumps(document).encode()
    found = oip.parse(text + tail, len(text) if tail else None, "m", "3")
    return sent(found), found.binary


def sent(infer: oip.Infer) -> pb.ModelInferRequest:
    """The message that goes to the inference service."""
    return pb.ModelInferRequest.FromString(wire.serialize(infer.request, infer.tensors))


def render(response: pb.ModelInferResponse, binary: oip.Binary) -> tuple[bytes, int | None]:
    """The body that comes of such a message from the inference service, and where its binary data begin."""
    parts, head = oip.render(*wire.split(response.SerializeToString()), binary)
    return b"".join(parts), head


def test_the_same_data_flat_nested_or_binary_is_the_same_request() -> None:
    raw = np.array([1, 2, 3, 4], "<f4").tobytes()
    flat, _ = parse({"inputs": [{**X, "data": [1, 2.0, 3, 4]}]})
    nested, _ = parse({"inputs": [{**X, "data": [[1, 2], [3, 4]]}]})
    binary, _ = parse({"inputs": [{**X, "parameters": {"binary_data_size": 16}}]}, raw)
    assert flat == nested == binary
    assert (flat.model_name, flat.model_version) == ("m", "3")
    assert flat.raw_input_contents == [raw]


@pytest.mark.parametrize(
    ("datatype", "data"),
    [
        ("BOOL", [True, False]),
        ("INT8", [-128, 127]),
        ("UINT64", [0, 2**64 - 1]),
        ("INT64", [-(2**63), 2**63 - 1]),
        ("FP64", [0.1, 1e300]),
        ("BYTES", ["é", ""]),
    ],
)
def test_every_type_goes_both_ways(datatype: str, data: list[Any]) -> None:
    request, _ = parse({"inputs": [{"name": "x", "datatype": datatype, "shape": [2], "data": data}]})
    response = pb.ModelInferResponse(model_name="m", raw_output_contents=request.raw_input_contents)
    response.outputs.add(name="y", datatype=datatype, shape=[2])
    body, head = render(response, oip.Binary({}, False))
    assert head is None
    assert json.loads(body)["outputs"] == [{"name": "y", "datatype": datatype, "shape": [2], "data": data}]


def test_parameters_keep_their_types_and_null_is_nothing() -> None:
    given_parameters = {"a": True, "b": 3, "c": 0.5, "d": "text", "e": 2**63, "priority": 1, "f": None}
    request, binary = parse(
        {
            "id": None,
            "parameters": {**given_parameters, "binary_data_output": True},
            "inputs": [{**X, "data": [1, 2, 3, 4], "parameters": None}],
            "outputs": [{"name": "y"}, {"name": "z", "parameters": {"binary_data": False, "classification": 3}}],
        }
    )
    kinds = {name: p.WhichOneof("parameter_choice") for name, p in request.parameters.items()}
    assert kinds == {
        "a": "bool_param",
        "b": "int64_param",
        "c": "double_param",
        "d": "string_param",
        "e": "uint64_param",
        "priority": "uint64_param",
    }
    assert [output.name for output in request.outputs] == ["y", "z"]
    assert request.outputs[1].parameters["classification"].int64_param == 3
    assert (binary.wants("y"), binary.wants("z"), binary.wants("other")) == (True, False, True)


def test_an_input_in_shared_memory_has_no_data() -> None:
    request, _ = parse({"inputs": [{**X, "parameters": {"shared_memory_region": "r"}}, {**X, "data": [0, 0, 0, 0]}]})
    assert len(request.raw_input_contents) == 1
    assert request.inputs[0].parameters["shared_memory_region"].string_param == "r"


BAD: dict[str, tuple[Any, bytes]] = {
    "not an object": ([1], b""),
    "inputs not a list": ({"inputs": {}}, b""),
    "an input that is text": ({"inputs": ["x"]}, b""),
    "no shape": ({"inputs": [{"name": "x", "datatype": "FP32", "data": [1]}]}, b""),
    "shape of text": ({"inputs": [{**X, "shape": ["2"], "data": [1]}]}, b""),
    "shape of booleans": ({"inputs": [{**X, "shape": [True], "data": [1]}]}, b""),
    "negative shape": ({"inputs": [{**X, "shape": [-1], "data": [1]}]}, b""),
    "shape that wraps": ({"inputs": [{**X, "shape": [16, 2**60 + 2], "data": [1]}]}, b""),
    "huge shape": ({"inputs": [{**X, "shape": [2**31, 2**31], "data": [1]}]}, b""),
    "nine dimensions": ({"inputs": [{**X, "shape": [1] * 9, "data": [1]}]}, b""),
    "too little data": ({"inputs": [{**X, "data": [1, 2, 3]}]}, b""),
    "too much data": ({"inputs": [{**X, "data": [1, 2, 3, 4, 5]}]}, b""),
    "ragged data": ({"inputs": [{**X, "data": [[1, 2], [3]]}]}, b""),
    "text in numbers": ({"inputs": [{**X, "data": [1, 2, 3, "4"]}]}, b""),
    "booleans in numbers": ({"inputs": [{**X, "data": [1, 2, 3, True]}]}, b""),
    "null in numbers": ({"inputs": [{**X, "data": [1, 2, 3, None]}]}, b""),
    "objects in numbers": ({"inputs": [{**X, "data": [1, 2, 3, {}]}]}, b""),
    "no data": ({"inputs": [X]}, b""),
    "a number as data": ({"inputs": [{**X, "data": 4}]}, b""),
    "too large a number": ({"inputs": [{**X, "data": [1, 2, 3, 1e39]}]}, b""),
    "too large a whole number": ({"inputs": [{**X, "data": [1, 2, 3, 10**400]}]}, b""),
    "fraction for whole": ({"inputs": [{**X, "datatype": "INT32", "data": [1, 2, 3, 4.0]}]}, b""),
    "out of range": ({"inputs": [{**X, "datatype": "UINT8", "data": [1, 2, 3, 256]}]}, b""),
    "half precision": ({"inputs": [{**X, "datatype": "FP16", "data": [1, 2, 3, 4]}]}, b""),
    "brain float": ({"inputs": [{**X, "datatype": "BF16", "data": [1, 2, 3, 4]}]}, b""),
    "unknown type": ({"inputs": [{**X, "datatype": "FP33", "data": [1, 2, 3, 4]}]}, b""),
    "lone surrogate": ({"inputs": [{**X, "datatype": "BYTES", "shape": [1], "data": ["\ud800"]}]}, b""),
    "lone surrogate in a name": ({"inputs": [{**X, "name": "\ud800", "data": [1, 2, 3, 4]}]}, b""),
    "data twice": ({"inputs": [{**X, "data": [1], "parameters": {"binary_data_size": 1}}]}, b"1"),
    "data and shared memory": ({"inputs": [{**X, "data": [1], "parameters": {"shared_memory_region": "r"}}]}, b""),
    "binary data and shared memory": (
        {"inputs": [{**X, "parameters": {"shared_memory_region": "r", "binary_data_size": 1}}]},
        b"1",
    ),
    "more binary data than there is": ({"inputs": [{**X, "parameters": {"binary_data_size": 17}}]}, b"1" * 16),
    "negative binary size": ({"inputs": [{**X, "parameters": {"binary_data_size": -1}}]}, b"1"),
    "binary size that is text": ({"inputs": [{**X, "parameters": {"binary_data_size": "1"}}]}, b"1"),
    "binary data left over": ({"inputs": [{**X, "parameters": {"binary_data_size": 15}}]}, b"1" * 16),
    "a parameter that is a list": ({"parameters": {"a": []}}, b""),
    "a parameter beyond 64 bits": ({"parameters": {"a": 2**64}}, b""),
    "a negative priority": ({"parameters": {"priority": -1}}, b""),
    "binary output that is text": ({"parameters": {"binary_data_output": "yes"}}, b""),
    "too many inputs": ({"inputs": [X] * 257}, b""),
    "too many outputs": ({"outputs": [{"name": "y"}] * 257}, b""),
    "too many parameters": ({"parameters": {str(n): 1 for n in range(257)}}, b""),
    "an id that is a number": ({"id": 3}, b""),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_invalid(name: str) -> None:
    with pytest.raises(errors.Invalid):
        parse(*BAD[name])


def test_header_longer_than_the_body_is_invalid() -> None:
    with pytest.raises(errors.Invalid, match="larger than the body"):
        oip.parse(b"{}", 3, "m", "")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*X, "data", "parameters"]), inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(document=st.dictionaries(st.sampled_from(["id", "inputs", "outputs", "parameters"]), json_values))
def test_any_document_is_understood_or_invalid(document: Any) -> None:
    with contextlib.suppress(errors.Invalid):
        parse(document)


def metadata(*specs: tuple[str, str, list[int]]) -> pb.ModelMetadataResponse:
    found = pb.ModelMetadataResponse(name="m")
    for name, datatype, shape in specs:
        found.inputs.add(name=name, datatype=datatype, shape=shape)
    return found


@pytest.mark.parametrize(
    ("datatype", "shape", "size", "expected"),
    [("FP32", [-1, 3], 24, [2, 3]), ("INT64", [4], 32, [4]), ("BYTES", [1], 5, [1]), ("BYTES", [-1, 1], 5, [1, 1])],
)
def test_raw_data_takes_the_only_shape_it_can_have(
    datatype: str, shape: list[int], size: int, expected: list[int]
) -> None:
    request = sent(oip.raw_request(b"x" * size, "m", "", metadata(("x", datatype, shape))))
    assert list(request.inputs[0].shape) == expected
    raw = request.raw_input_contents[0]
    assert raw == (
        codec.encode(np.array([b"x" * size], object), DataType.BYTES) if datatype == "BYTES" else b"x" * size
    )


@pytest.mark.parametrize(
    "specs",
    [
        [],
        [("a", "FP32", [1]), ("b", "FP32", [1])],
        [("x", "FP32", [-1, -1])],
        [("x", "FP32", [-1, 7])],
        [("x", "FP32", [3])],
        [("x", "FP32", [-1, 0])],
    ],
    ids=str,
)
def test_raw_data_that_fits_no_shape_is_invalid(specs: list[tuple[str, str, list[int]]]) -> None:
    with pytest.raises(errors.Invalid):
        oip.raw_request(b"x" * 24, "m", "", metadata(*specs))


def answer(datatype: str, shape: list[int], raw: bytes, name: str = "y") -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="m", model_version="1", id="7", raw_output_contents=[raw])
    response.outputs.add(name=name, datatype=datatype, shape=shape)
    return response


def test_binary_outputs_follow_the_json_in_order() -> None:
    response = answer("FP32", [1], b"aaaa")
    response.outputs.add(name="z", datatype="INT32", shape=[1])
    response.outputs.add(name="w", datatype="INT32", shape=[2])
    response.raw_output_contents.extend([b"\1\0\0\0", b"bbbbbbbb"])
    response.parameters["note"].string_param = "n"
    body, head = render(response, oip.Binary({"z": False}, True))
    assert head is not None
    found = json.loads(body[:head])
    assert (found["id"], found["parameters"]) == ("7", {"note": "n"})
    assert [output.get("data") for output in found["outputs"]] == [None, [1], None]
    assert [output.get("parameters") for output in found["outputs"]] == [
        {"binary_data_size": 4},
        None,
        {"binary_data_size": 8},
    ]
    assert body[head:] == b"aaaabbbbbbbb"


@pytest.mark.parametrize(
    "response",
    [
        answer("FP16", [1], b"\0\0"),
        answer("BF16", [1], b"\0\0"),
        answer("FP32", [1], np.array([np.nan], "<f4").tobytes()),
        answer("FP64", [1], np.array([np.inf], "<f8").tobytes()),
        answer("BYTES", [1], b"\1\0\0\0\xff"),
    ],
    ids=["half", "brain float", "NaN", "infinity", "no text"],
)
def test_what_json_cannot_carry_is_refused_with_advice(response: pb.ModelInferResponse) -> None:
    with pytest.raises(errors.FailedPrecondition, match="binary data"):
        render(response, oip.Binary({}, False))
    body, head = render(response, oip.Binary({}, True))
    assert body[head:] == response.raw_output_contents[0]


def test_an_answer_without_data_is_our_fault() -> None:
    response = answer("FP32", [1], b"aaaa")
    del response.raw_output_contents[:]
    with pytest.raises(errors.Internal):
        render(response, oip.Binary({}, False))
