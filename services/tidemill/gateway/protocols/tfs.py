"""Predict requests of TensorFlow Serving's REST API, by its JSON rules and with its error texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.bodies import parse as parse_json
from tidemill.gateway.pieces import Buffer
from tidemill.gateway.protocols import values
from tidemill.gateway.protocols.tfs_values import explain, has_lists, is_object, shape_of, shape_text, show, typed
from tidemill.tensors import codec, dtypes, shapes
from tidemill.tensors.codec import Array
from tidemill.tensors.dtypes import DataType

SIGNATURE = "serving_default"
"""The one signature that a model has."""


@dataclass(frozen=True, slots=True)
class Predict:
    """A predict request: the value of `instances` when `rows`, else that of `inputs`."""

    value: Any
    rows: bool


def parse(body: Buffer) -> Predict:
    """What a predict request holds.

    Raises:
        Invalid: it is not one.
    """
    if not body:
        raise errors.Invalid("JSON Parse error: The document is empty")
    try:
        found = parse_json(body, nonfinite=True)
    except errors.Invalid as error:
        raise errors.Invalid(f"JSON Parse error: {error.message}", reason=error.reason) from error
    if not isinstance(found, dict):
        raise errors.Invalid(f"JSON Value: {show(found)} Is not object")
    signature = found.get("signature_name", "")
    if not isinstance(signature, str):
        raise errors.Invalid(
            f"JSON Value: {show(found)} not formatted correctly. 'signature_name' key must be a string value."
        )
    if signature not in ("", SIGNATURE):
        raise errors.Invalid(f'Serving signature name: "{signature[:64]}" not found in signature def')
    if "instances" in found and "inputs" in found:
        raise errors.Invalid(
            f"JSON Value: {show(found)} Not formatted correctly expecting only one of 'inputs' or 'instances' keys "
            "to exist "
        )
    if "instances" in found:
        instances = found["instances"]
        if not isinstance(instances, list):
            raise errors.Invalid(f"JSON Value: {show(found)} Excepting 'instances' to be an list/array")
        if not instances:
            raise errors.Invalid(f"JSON Value: {show(found)} No values in 'instances' array")
        return Predict(instances, True)
    if "inputs" in found:
        return Predict(found["inputs"], False)
    raise errors.Invalid("Missing 'inputs' or 'instances' key")


def request(predict: Predict, metadata: pb.ModelMetadataResponse, model: str, version: str) -> pb.ModelInferRequest:
    """The message of a predict request to a model with these inputs.

    Raises:
        Invalid: names, types or shapes do not fit.
        Unimplemented: JSON has no such elements.
    """
    types = {spec.name: dtypes.parse(spec.datatype) for spec in metadata.inputs}
    tensors = _rows(predict.value, types) if predict.rows else _columns(predict.value, types)
    made = pb.ModelInferRequest(model_name=model, model_version=version)
    for name, array in tensors.items():
        shapes.elements(array.shape, name)
        made.inputs.add(name=name, datatype=types[name].name, shape=array.shape)
        made.raw_input_contents.append(codec.encode(array, types[name]))
    return made


def _rows(instances: Sequence[Any], types: Mapping[str, DataType]) -> dict[str, Array]:
    named = is_object(instances[0])
    if not named:
        if len(types) > 1:
            raise errors.Invalid(
                "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
                "tensorinfo_map"
            )
        for number, item in enumerate(instances):
            if is_object(item):
                raise errors.Invalid(f"Expecting value/list but got object at item {number} of input list")
        name, dtype = next(iter(types.items()))
        return {name: _batch(instances, dtype, "")}
    wanted = set(types)
    for number, item in enumerate(instances):
        if not is_object(item):
            raise errors.Invalid(f"Expecting object but got list at item {number} of input list")
        for key in item:
            if key not in wanted:
                raise errors.Invalid(
                    f"Failed to process element: {number} key: {key[:64]} of 'instances' list. Error: "
                    f"INVALID_ARGUMENT: JSON object: does not have named input: {key[:64]}"
                )
        if set(item) != wanted:
            raise errors.Invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: {show(item)} must only have "
                f"keys: {','.join(sorted(wanted))}"
            )
    return {name: _batch([item[name] for item in instances], dtype, name) for name, dtype in types.items()}


def _batch(items: Sequence[Any], dtype: DataType, key: str) -> Array:
    """One tensor of all rows, which must have the same shape; when they do not, the error says which row differs."""
    found = values.objects(list(items), "instances")
    if not has_lists(found):
        try:
            return typed(found, dtype)
        except errors.Invalid:
            _explain_rows(items, dtype, key)
            raise
    _explain_rows(items, dtype, key)
    raise errors.Invalid("instances do not form a tensor")


def _explain_rows(items: Sequence[Any], dtype: DataType, key: str) -> None:
    first: list[int] | None = None
    for number, item in enumerate(items):
        where = f"Failed to process element: {number}{f' key: {key}' if key else ''} of 'instances' list. Error: "
        shape = shape_of(item)
        try:
            explain(item, shape, 0, dtype)
        except errors.Invalid as error:
            raise errors.Invalid(f"{where}INVALID_ARGUMENT: {error.message}") from error
        if first is None:
            first = shape
        elif np.prod(first, dtype=object) != np.prod(shape, dtype=object):
            raise errors.Invalid(
                f"{where}INVALID_ARGUMENT: Expecting tensor size: {np.prod(first, dtype=object)} but got: "
                f"{np.prod(shape, dtype=object)}"
            )
        elif first != shape:
            raise errors.Invalid(
                f"{where}INVALID_ARGUMENT: Expecting shape {shape_text(first)} but got: {shape_text(shape)}"
            )


def _columns(value: Any, types: Mapping[str, DataType]) -> dict[str, Array]:
    if not is_object(value):
        if len(types) > 1:
            raise errors.Invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                "tensorinfo_map"
            )
        name, dtype = next(iter(types.items()))
        return {name: _column(value, dtype)}
    for name in types:
        if name not in value:
            raise errors.Invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _column(value[name], dtype) for name, dtype in types.items()}


def _column(value: Any, dtype: DataType) -> Array:
    found = values.objects(value, "inputs")
    if not has_lists(found):
        return typed(found, dtype)
    explain(value, shape_of(value), 0, dtype)
    raise errors.Invalid("inputs do not form a tensor")
