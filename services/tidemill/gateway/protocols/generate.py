"""`generate`: a flat JSON object as an infer request, and answers as flat JSON objects."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Invalid, invalid
from tidemill.gateway.bodies import parse as parse_json
from tidemill.gateway.pieces import Buffer
from tidemill.gateway.protocols import oip, values
from tidemill.gateway.protocols.oip_messages import text
from tidemill.tensors import codec, dtypes
from tidemill.tensors.dtypes import DataType

FINAL = "triton_final_response"
"""Parameter of a last response; what it says, the end of the answer says too."""
MANY = (
    "generate expects model to produce exactly 1 response, use generate stream for model that generates various number "
    "of responses"
)
_PARAMETERS = "parameters"
_ID = "id"
_ASK = "use infer and ask for it as binary data"
_SIGNED = frozenset({DataType.INT8, DataType.INT16, DataType.INT32, DataType.INT64})


def parse(body: Buffer) -> Mapping[str, Any]:
    """The JSON object of a request; the names in it are unique.

    Raises:
        Invalid: it is no object, or one of its names occurs twice.
    """
    found = parse_json(body, pairs=_unique)
    if not isinstance(found, dict):
        raise invalid("body", "must be an object")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in pairs:
        if name in made:
            raise Invalid(f"input '{name[:64]}' already exists in request", reason="DUPLICATE_INPUT")
        made[name] = value
    return made


def request(given: Mapping[str, Any], model: str, version: str, metadata: pb.ModelMetadataResponse) -> oip.Infer:
    """The infer request: what the model has as inputs becomes tensors, the rest parameters.

    Raises:
        Invalid: a value does not fit its input, or is none that parameters have.
    """
    if len(given) > oip.MAX_TENSORS:
        raise invalid("body", f"must have at most {oip.MAX_TENSORS} members")
    specs = {spec.name: spec for spec in metadata.inputs}
    made = oip.Infer(pb.ModelInferRequest(model_name=model, model_version=version), [], oip.Binary({}, False))
    for name, value in given.items():
        if name == _PARAMETERS and name not in specs:
            if not isinstance(value, dict | None):
                raise Invalid(f"Expected JSON object for keyword: '{name}'", reason="INVALID_PARAMETERS")
            for inner, item in (value or {}).items():
                _add(made, inner, item, specs, f"Converting keyword: '{name}': ")
        elif name == _ID and name not in specs:
            made.request.id = "" if value is None else text(value, _ID)
        else:
            _add(made, name, value, specs, "")
    return made


def _add(made: oip.Infer, name: str, value: Any, specs: Mapping[str, Any], where: str) -> None:
    text(name, "body")
    spec = specs.get(name)
    if spec is None:
        if not isinstance(value, bool | int | float | str | None):
            raise Invalid(
                f"{where}parameter '{name[:64]}' has invalid type. It should be either 'int', 'bool', or 'string'.",
                reason="INVALID_PARAMETER",
            )
        oip.set_parameters(made.request.parameters, {name: value}, _PARAMETERS)
        return
    if any(tensor.name == name for tensor in made.request.inputs):
        raise Invalid(f"input '{name}' already exists in request", reason="DUPLICATE_INPUT")
    dtype = dtypes.parse(spec.datatype)
    found = values.objects(value, name)
    _check_kinds(found, dtype)
    array = values.array(value if isinstance(value, list) else [value], dtype, name)
    shape = list(array.shape) if isinstance(value, list) and array.ndim == len(spec.shape) else None
    shape = shape or _fitted(array.size, spec.shape, name)
    made.request.inputs.add(name=name, datatype=spec.datatype, shape=shape)
    made.tensors.append(codec.encode(array, dtype))


def _check_kinds(found: codec.Array, dtype: DataType) -> None:
    """Say in the words that clients know which kind of value was expected."""
    kinds = values.kinds(found)
    wanted: tuple[set[type], str]
    if dtype is DataType.BYTES:
        wanted = {str}, "string"
    elif dtype is DataType.BOOL:
        wanted = {bool}, "boolean"
    elif dtype in values.INTEGERS:
        wanted = {int}, "signed-integer" if dtype in _SIGNED else "unsigned-integer"
    else:
        wanted = {int, float}, "number"
    if not kinds <= wanted[0]:
        raise Invalid(f"attempt to access JSON non-{wanted[1]} as {wanted[1]}", reason="INVALID_ELEMENT")


def _fitted(count: int, shape: Sequence[int], name: str) -> list[int]:
    """The shape that `count` elements have: the last free dimension takes what the others, then 1, leave."""
    made = [1 if dimension < 0 else dimension for dimension in shape]
    free = [index for index, dimension in enumerate(shape) if dimension < 0]
    rest = math.prod(made)
    if free and rest and count % rest == 0:
        made[free[-1]] = count // rest
    elif rest != count:
        raise invalid(name, f"{count} elements fit no shape of {list(shape)}", reason="INVALID_SHAPE")
    return made


def render(response: pb.ModelInferResponse, tensors: Sequence[Buffer]) -> str:
    """An answer as a JSON object: outputs by name, one element as a value and more as a list, and parameters.

    Raises:
        Internal: the answer contradicts itself.
        FailedPrecondition: JSON cannot carry an output.
    """
    found: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        found[_ID] = response.id
    parameters = oip.parameters_of(response.parameters)
    parameters.pop(FINAL, None)
    found.update(parameters)
    for output, raw in oip.outputs_of(response, tensors):
        if raw is not None:
            data = oip.elements(output, raw, _ASK)
            found[output.name] = data[0] if len(data) == 1 else data
    return json.dumps(found, separators=(",", ":"), allow_nan=False)


def is_empty(response: pb.ModelInferResponse) -> bool:
    """Whether a response only says that it is the last."""
    return not response.outputs and FINAL in response.parameters and response.parameters[FINAL].bool_param
