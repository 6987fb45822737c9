"""Flat objects as infer requests, and answers as flat objects."""

import json
from typing import Any

import numpy as np
import pytest

from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.protocols import generate
from tidemill.tensors import codec
from tidemill.tensors.dtypes import DataType

METADATA = pb.ModelMetadataResponse(
    name="m",
    inputs=[
        pb.ModelMetadataResponse.TensorMetadata(name=name, datatype=datatype, shape=shape)
        for name, datatype, shape in (
            ("text", "BYTES", [-1, 1]),
            ("stream", "BOOL", [1]),
            ("tokens", "INT32", [-1, -1]),
            ("heat", "FP32", [2, 2]),
            ("count", "UINT8", [-1]),
            ("half", "FP16", [-1]),
        )
    ],
)


def made(**given: Any) -> Any:
    return generate.request(generate.parse(json.dumps(given).encode()), "m", "3", METADATA)


@pytest.mark.parametrize(
    ("name", "value", "shape", "elements"),
    [
        ("text", "hello", [1, 1], [b"hello"]),
        ("text", ["a", "é"], [2, 1], [b"a", "é".encode()]),
        ("text", [["a"], ["b"]], [2, 1], [b"a", b"b"]),
        ("stream", True, [1], [True]),
        ("stream", [False], [1], [False]),
        ("tokens", 7, [1, 1], [7]),
        ("tokens", [1, 2, 3], [1, 3], [1, 2, 3]),
        ("tokens", [[1, 2], [3, 4]], [2, 2], [1, 2, 3, 4]),
        ("tokens", [], [1, 0], []),
        ("heat", [1, 2.5, 3, 4], [2, 2], [1, 2.5, 3, 4]),
        ("count", [], [0], []),
        ("count", 200, [1], [200]),
    ],
)
def test_values_become_tensors_of_the_shape_that_they_fit(
    name: str, value: Any, shape: list[int], elements: list[Any]
) -> None:
    found = made(**{name: value})
    (tensor,) = found.request.inputs
    assert (tensor.name, list(tensor.shape)) == (name, shape)
    array = codec.decode(DataType[tensor.datatype], shape, found.tensors[0])
    assert array.ravel().tolist() == elements
    assert (found.request.model_name, found.request.model_version) == ("m", "3")


def test_what_is_no_input_is_a_parameter() -> None:
    found = made(id="7", text="x", temperature=0.5, own=None, parameters={"tokens": [1], "top": 3, "flag": True})
    assert [tensor.name for tensor in found.request.inputs] == ["text", "tokens"]
    assert found.request.id == "7"
    kinds = {name: p.WhichOneof("parameter_choice") for name, p in found.request.parameters.items()}
    assert kinds == {"temperature": "double_param", "top": "int64_param", "flag": "bool_param"}


STRING = "attempt to access JSON non-string as string"


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"text": 1}, STRING),
        ({"text": {"a": "b"}}, STRING),
        ({"text": None}, STRING),
        ({"text": ["a", 1]}, STRING),
        ({"stream": "false"}, "attempt to access JSON non-boolean as boolean"),
        ({"tokens": 1.5}, "attempt to access JSON non-signed-integer as signed-integer"),
        ({"count": "1"}, "attempt to access JSON non-unsigned-integer as unsigned-integer"),
        ({"count": 256}, "count: an element is not a value of UINT8"),
        ({"heat": "1"}, "attempt to access JSON non-number as number"),
        ({"heat": [1, 2, 3]}, r"heat: 3 elements fit no shape of \[2, 2\]"),
        ({"tokens": [[1, 2], [3]]}, "attempt to access JSON"),
        ({"half": 1}, "half: FP16 travels as binary data only"),
        ({"other": {}}, "parameter 'other' has invalid type. It should be either 'int', 'bool', or 'string'."),
        ({"parameters": 1}, "Expected JSON object for keyword: 'parameters'"),
        ({"parameters": {"n": {"a": 1}}}, "Converting keyword: 'parameters': parameter 'n' has invalid type."),
        ({"text": "a", "parameters": {"text": "b"}}, "input 'text' already exists in request"),
        ({"id": 3}, "id: must be a string"),
        ({str(number): 1 for number in range(257)}, "at most 256"),
    ],
    ids=str,
)
def test_bad_requests_are_invalid_in_the_words_that_clients_know(given: Any, problem: str) -> None:
    with pytest.raises(errors.Invalid, match=problem):
        made(**given)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"text": "a", "stream": true, "text": "b"}', "input 'text' already exists in request"),
        (b"[]", "must be an object"),
        (b"", "not JSON"),
    ],
)
def test_bad_documents_are_invalid(text: bytes, problem: str) -> None:
    with pytest.raises(errors.Invalid, match=problem):
        generate.parse(text)


def test_answers_are_flat_objects() -> None:
    answer = pb.ModelInferResponse(model_name="m", model_version="1", id="7")
    answer.parameters["sequence_id"].int64_param = 3
    answer.parameters[generate.FINAL].bool_param = True
    answer.outputs.add(name="text", datatype="BYTES", shape=[1, 1])
    answer.outputs.add(name="scores", datatype="FP32", shape=[2])
    tensors = [b"\2\0\0\0hi", np.array([0.5, 1], "<f4").tobytes()]
    assert json.loads(generate.render(answer, tensors)) == {
        "model_name": "m",
        "model_version": "1",
        "id": "7",
        "sequence_id": 3,
        "text": "hi",
        "scores": [0.5, 1.0],
    }
    assert not generate.is_empty(answer)
    del answer.outputs[:]
    assert generate.is_empty(answer)
