"""Predict requests and answers by the JSON rules of TensorFlow Serving, with its error texts."""

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.protocols import tfs, tfs_response
from tidemill.tensors import codec, dtypes

Specs = dict[str, str]
ONE: Specs = {"x": "FP32"}
TWO: Specs = {"a": "INT32", "b": "FP32"}


def convert(document: Any, specs: Specs) -> dict[str, Any]:
    """The tensors that a document becomes, for inputs of these types, as nested lists."""
    metadata = pb.ModelMetadataResponse(name="m")
    for name, datatype in specs.items():
        metadata.inputs.add(name=name, datatype=datatype, shape=[-1])
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    request = tfs.request(tfs.parse(text), metadata, "m", "3")
    assert (request.model_name, request.model_version) == ("m", "3")
    return {
        tensor.name: codec.decode(dtypes.parse(tensor.datatype), tensor.shape, raw).tolist()
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }


def test_rows_of_one_input() -> None:
    assert convert({"instances": [[1, 2], [3, 4.5]]}, ONE) == {"x": [[1, 2], [3, 4.5]]}
    assert convert({"instances": [1, 2.5], "signature_name": "serving_default"}, ONE) == {"x": [1, 2.5]}
    assert convert({"instances": [{"x": [1]}, {"x": [2]}]}, ONE) == {"x": [[1], [2]]}


def test_rows_of_two_inputs() -> None:
    rows = [{"a": 1, "b": [0.5]}, {"a": 2, "b": [1.5]}]
    assert convert({"instances": rows}, TWO) == {"a": [1, 2], "b": [[0.5], [1.5]]}


def test_columns() -> None:
    assert convert({"inputs": [[1], [2]]}, ONE) == {"x": [[1], [2]]}
    assert convert({"inputs": 1.5}, ONE) == {"x": 1.5}
    assert convert({"inputs": {"a": [1], "b": [2], "ignored": 3}}, TWO) == {"a": [1], "b": [2]}


def test_bytes_come_as_text_or_base64() -> None:
    assert convert({"instances": ["é", {"b64": "AP8="}]}, {"s": "BYTES"}) == {"s": ["é".encode(), b"\0\xff"]}
    assert convert({"inputs": {"b64": "AP8="}}, {"s": "BYTES"}) == {"s": b"\0\xff"}
    assert convert({"instances": [{"s": {"b64": ""}}]}, {"s": "BYTES"}) == {"s": [b""]}


def test_tokens_for_numbers_that_json_lacks() -> None:
    found = convert(b'{"instances": [NaN, Infinity, -Infinity]}', ONE)["x"]
    assert np.isnan(found[0])
    assert found[1:] == [np.inf, -np.inf]


@pytest.mark.parametrize("datatype", ["INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"])
def test_whole_numbers_up_to_their_limits(datatype: str) -> None:
    limits = np.iinfo(dtypes.parse(datatype).numpy)
    assert convert({"instances": [int(limits.min), int(limits.max)]}, {"x": datatype})["x"] == [limits.min, limits.max]
    with pytest.raises(errors.Invalid, match="not of expected type"):
        convert({"instances": [int(limits.max) + 1]}, {"x": datatype})


# document, types of the inputs, what the error says
BAD: dict[str, tuple[Any, Specs, str]] = {
    "empty": (b"", ONE, "JSON Parse error: The document is empty"),
    "no json": (b"{", ONE, "JSON Parse error: "),
    "no object": ([1], ONE, "JSON Value: [\n    1\n] Is not object"),
    "no key": ({"x": 1}, ONE, "Missing 'inputs' or 'instances' key"),
    "both keys": ({"inputs": 1, "instances": [1]}, ONE, "only one of 'inputs' or 'instances' keys to exist"),
    "instances no list": ({"instances": 1}, ONE, "Excepting 'instances' to be an list/array"),
    "no instances": ({"instances": []}, ONE, "No values in 'instances' array"),
    "signature no text": ({"signature_name": 1}, ONE, "'signature_name' key must be a string value."),
    "other signature": (
        {"signature_name": "other", "instances": [1]},
        ONE,
        'Serving signature name: "other" not found in signature def',
    ),
    "plain rows for two inputs": (
        {"instances": [1]},
        TWO,
        "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
        "tensorinfo_map",
    ),
    "plain column for two inputs": (
        {"inputs": [1]},
        TWO,
        "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
        "tensorinfo_map",
    ),
    "object after value": (
        {"instances": [1, {"x": 1}]},
        ONE,
        "Expecting value/list but got object at item 1 of input list",
    ),
    "value after object": ({"instances": [{"x": 1}, 1]}, ONE, "Expecting object but got list at item 1 of input list"),
    "unknown input": (
        {"instances": [{"z": 1}]},
        ONE,
        "Failed to process element: 0 key: z of 'instances' list. Error: INVALID_ARGUMENT: JSON object: does not have "
        "named input: z",
    ),
    "missing key": ({"instances": [{"a": 1}]}, TWO, "must only have keys: a,b"),
    "missing column": ({"inputs": {"a": [1]}}, TWO, "Missing named input: b in 'inputs' object."),
    "ragged row": (
        {"instances": [[[1, 2], [3]]]},
        ONE,
        "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: Encountered list at unexpected "
        "size: 1 at level: 1 expected size: 2",
    ),
    "ragged column": (
        {"inputs": [[1, 2], [3]]},
        ONE,
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
    ),
    "rows of other size": (
        {"instances": [[1, 2], [3]]},
        ONE,
        "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 2 but got: "
        "1",
    ),
    "rows of other shape": (
        {"instances": [[1, 2], [[3], [4]]]},
        ONE,
        "Error: INVALID_ARGUMENT: Expecting shape [2] but got: [2,1]",
    ),
    "rows of a named input of other size": (
        {"instances": [{"a": 1, "b": [1]}, {"a": 1, "b": [1, 2]}]},
        TWO,
        "Failed to process element: 1 key: b of 'instances' list. Error: INVALID_ARGUMENT: Expecting tensor size: 1 "
        "but got: 2",
    ),
    "list too deep": ({"inputs": [1, [2]]}, ONE, "Encountered list at unexpected level: 1 expected < 1"),
    "list too flat": (
        {"inputs": [[1], 2]},
        ONE,
        "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
    ),
    "text for a number": ({"instances": ["a"]}, ONE, 'JSON Value: "a" Type: String is not of expected type: float'),
    "truth for a number": ({"instances": [True]}, ONE, "JSON Value: true Type: True is not of expected type: float"),
    "nothing for a number": ({"inputs": [None]}, ONE, "JSON Value: null Type: Null is not of expected type: float"),
    "object for a number": ({"inputs": [{"c": 1}]}, ONE, "Type: Object is not of expected type: float"),
    "number for truth": ({"inputs": [1]}, {"x": "BOOL"}, "JSON Value: 1 Type: Number is not of expected type: bool"),
    "fraction for whole": (
        {"inputs": [1.5]},
        {"x": "INT32"},
        "JSON Value: 1.5 Type: Number is not of expected type: int32",
    ),
    "number for text": ({"inputs": [1]}, {"x": "BYTES"}, "JSON Value: 1 Type: Number is not of expected type: string"),
    "bad base64": ({"inputs": {"b64": "*"}}, {"x": "BYTES"}, "Unable to base64 decode"),
    "object that is no base64": (
        {"inputs": [{"b64": "", "c": 1}]},
        {"x": "BYTES"},
        "not formatted correctly for base64 data",
    ),
    "whole number that a float rounds": (
        {"inputs": [2**24]},
        ONE,
        "Cannot convert JSON value: 16777216 to float without loss of precision.",
    ),
    "number that no float holds": (
        {"inputs": [1e39]},
        ONE,
        "Cannot convert JSON value: 1e+39 to float without loss of precision.",
    ),
    "number that no double holds": ({"inputs": [10**400]}, {"x": "FP64"}, "to double without loss of precision."),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_in_the_protocols_words(name: str) -> None:
    document, specs, text = BAD[name]
    with pytest.raises(errors.Invalid) as refused:
        convert(document, specs)
    assert text in refused.value.message


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_types_that_json_lacks_are_unimplemented(datatype: str) -> None:
    with pytest.raises(errors.Unimplemented):
        convert({"inputs": [1]}, {"x": datatype})


def test_an_error_shows_little_of_a_large_document() -> None:
    with pytest.raises(errors.Invalid) as refused:
        convert({"other": ["x" * 1000] * 1000, "inputs": 1, "instances": 2}, ONE)
    assert len(refused.value.message) < 400


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "b64"]), inner),
    max_leaves=12,
)


@settings(deadline=None)
@given(
    key=st.sampled_from(["instances", "inputs"]),
    value=json_values,
    specs=st.sampled_from([ONE, TWO, {"a": "BYTES"}, {"a": "BOOL"}, {"b": "FP64"}]),
)
def test_any_document_is_understood_or_invalid(key: str, value: Any, specs: Specs) -> None:
    with contextlib.suppress(errors.Invalid):
        convert({key: value}, specs)


def render(rows: bool, **outputs: tuple[str, Any]) -> Any:
    """The text of an answer with these outputs: name=(datatype, values)."""
    response = pb.ModelInferResponse(model_name="m")
    for name, (datatype, values) in outputs.items():
        kind = dtypes.parse(datatype)
        array = np.array(values, kind.numpy)
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(codec.encode(array, kind))
    return tfs_response.render(response, rows=rows).decode()


def test_answers_have_the_form_of_the_request() -> None:
    one, two = ("FP32", [[0.5], [3]]), ("INT32", [[1], [2]])
    assert render(True, y=one) == '{"predictions":[[0.5],[3.0]]}'
    assert render(False, y=one) == '{"outputs":[[0.5],[3.0]]}'
    assert json.loads(render(True, y=one, z=two)) == {"predictions": [{"y": [0.5], "z": [1]}, {"y": [3.0], "z": [2]}]}
    assert json.loads(render(False, y=one, z=two)) == {"outputs": {"y": [[0.5], [3.0]], "z": [[1], [2]]}}


def test_floats_have_few_digits_and_always_a_point_or_an_exponent() -> None:
    assert render(False, y=("FP32", [0.1, 3, 1e10, 1e-7])) == '{"outputs":[0.1,3.0,10000000000.0,1e-07]}'
    assert render(False, y=("FP64", [0.1, 1e22])) == '{"outputs":[0.1,1e+22]}'
    assert render(False, y=("FP32", [np.nan, np.inf, -np.inf])) == '{"outputs":[NaN,Infinity,-Infinity]}'


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_floats_come_back_exactly(values: list[float]) -> None:
    found = json.loads(render(False, y=("FP32", values)))["outputs"]
    np.testing.assert_array_equal(np.array(found, np.float32), np.array(values, np.float32))


def test_strings_are_text_unless_their_name_says_bytes() -> None:
    data = ("BYTES", [b"\xc3\xa9"])
    assert json.loads(render(False, y=data)) == {"outputs": ["é"]}
    assert json.loads(render(False, y_bytes=data)) == {"outputs": [{"b64": "w6k="}]}
    with pytest.raises(errors.FailedPrecondition, match="_bytes"):
        render(False, y=("BYTES", [b"\xff"]))


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"y": ("FP32", 1.0)}, "Tensor name: y has no shape information "),
        ({"y": ("FP32", [])}, "Tensor name: y has invalid batch size: 0"),
        ({"y": ("FP32", [1]), "z": ("FP32", [1, 2])}, "Tensor name: z has inconsistent batch size: 2 expecting: 1"),
    ],
)
def test_outputs_that_are_no_rows_are_refused(outputs: dict[str, Any], text: str) -> None:
    with pytest.raises(errors.Invalid) as refused:
        render(True, **outputs)
    assert refused.value.message == text
    assert render(False, **outputs)
