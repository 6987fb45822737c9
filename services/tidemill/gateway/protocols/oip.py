"""Infer requests and responses of the Open Inference Protocol over HTTP: JSON, and tensors as binary data behind it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import invalid
from tidemill.gateway.bodies import parse as parse_json
from tidemill.gateway.pieces import Buffer
from tidemill.gateway.protocols import values
from tidemill.tensors import codec, dtypes, shapes
from tidemill.tensors.dtypes import DataType

MAX_TENSORS = 256
MAX_PARAMETERS = 256
_BINARY = "binary_data"
_BINARY_SIZE = "binary_data_size"
_BINARY_OUTPUT = "binary_data_output"
_HEADERS = "headers"
_REGION = "shared_memory_region"
_ASK = "ask for it as binary data"


@dataclass(frozen=True, slots=True)
class Binary:
    """Which outputs the caller wants as binary data.

    Args:
        named: those that the request lists.
        others: whether all others are.
    """

    named: Mapping[str, bool]
    others: bool

    def wants(self, output: str) -> bool:
        """Whether `output` travels as binary data."""
        return self.named.get(output, self.others)


@dataclass(frozen=True, slots=True)
class Infer:
    """An infer request.

    Args:
        request: the message, without its raw contents.
        tensors: the raw contents, in the order of the inputs that are not in shared memory; views of the body, if it
            is binary data.
        binary: which outputs the caller wants as binary data.
    """

    request: pb.ModelInferRequest
    tensors: list[Buffer]
    binary: Binary


def parse(body: Buffer, head: int | None, model: str, version: str) -> Infer:
    """An infer request.

    Args:
        body: the JSON document, followed by the tensors that are sent as binary data.
        head: length of the document in bytes; None = all of the body.
        model: name of the model.
        version: its version, "" for the one that the server chooses.

    Raises:
        Invalid: the request contradicts the protocol.
    """
    if head is not None and head > len(body):
        raise invalid("Inference-Header-Content-Length", f"is larger than the body of {len(body)} bytes")
    cut = len(body) if head is None else head
    whole = memoryview(body)
    found = _object(parse_json(whole[:cut]), "request")
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=_string(found.get("id"), "id"))
    parameters = dict(_object(found.get("parameters"), "parameters"))
    default = _flag(parameters.pop(_BINARY_OUTPUT, None), _BINARY_OUTPUT)
    parameters.pop(_HEADERS, None)  # the name is taken for what the server itself would put there
    set_parameters(request.parameters, parameters, "parameters")
    rest = whole[cut:]
    tensors: list[Buffer] = []
    for number, item in enumerate(_items(found.get("inputs"), "inputs")):
        tensor, rest = _add_input(request, item, rest, f"inputs[{number}]")
        if tensor is not None:
            tensors.append(tensor)
    if len(rest):
        raise invalid("body", f"{len(rest)} bytes are left after the last input's binary data", reason="SIZE_MISMATCH")
    named = {}
    for number, item in enumerate(_items(found.get("outputs"), "outputs")):
        name, binary = _add_output(request, item, f"outputs[{number}]")
        named[name] = default if binary is None else binary
    return Infer(request, tensors, Binary(named, default))


def _add_input(
    request: pb.ModelInferRequest, item: Any, rest: memoryview, field: str
) -> tuple[Buffer | None, memoryview]:
    """Adds one input; its elements, None for one in shared memory, and the binary data of the inputs after it."""
    given = _object(item, field)
    tensor = request.inputs.add(
        name=_string(given.get("name"), f"{field}.name"),
        datatype=_string(given.get("datatype"), f"{field}.datatype"),
        shape=_shape(given.get("shape"), f"{field}.shape"),
    )
    parameters = dict(_object(given.get("parameters"), f"{field}.parameters"))
    size = parameters.pop(_BINARY_SIZE, None)
    set_parameters(tensor.parameters, parameters, f"{field}.parameters")
    data = given.get("data")
    ways = {"data": data, _BINARY_SIZE: size, _REGION: parameters.get(_REGION)}
    if sum(value is not None for value in ways.values()) > 1:
        raise invalid(field, f"may have one of {', '.join(ways)}")
    if size is not None:
        if type(size) is not int or not 0 <= size <= len(rest):
            raise invalid(f"{field}.parameters.{_BINARY_SIZE}", f"must be a number in [0, {len(rest)}]")
        return rest[:size], rest[size:]
    if ways[_REGION] is not None:
        return None, rest
    return _raw(data, tensor, f"{field}.data"), rest


def _raw(data: Any, tensor: pb.ModelInferRequest.InferInputTensor, field: str) -> bytes:
    """The elements that JSON `data` holds, flat or nested, as raw bytes."""
    dtype = dtypes.parse(tensor.datatype, f"{field.removesuffix('.data')}.datatype")
    count = shapes.elements(tensor.shape, f"{field.removesuffix('.data')}.shape")
    if not isinstance(data, list):
        raise invalid(field, "must be a list")
    array = values.array(data, dtype, field)
    if array.size != count:
        raise invalid(
            field, f"has {array.size} elements, but shape {list(tensor.shape)} has {count}", reason="SIZE_MISMATCH"
        )
    return codec.encode(array, dtype)


def _add_output(request: pb.ModelInferRequest, item: Any, field: str) -> tuple[str, bool | None]:
    given = _object(item, field)
    output = request.outputs.add(name=_string(given.get("name"), f"{field}.name"))
    parameters = dict(_object(given.get("parameters"), f"{field}.parameters"))
    binary = parameters.pop(_BINARY, None)
    set_parameters(output.parameters, parameters, f"{field}.parameters")
    return output.name, None if binary is None else _flag(binary, f"{field}.parameters.{_BINARY}")


def set_parameters(target: Any, given: Mapping[str, Any], field: str) -> None:
    """Add parameters to a message's; what is null is left out.

    Raises:
        Invalid: there are too many, or a value is of no type that parameters have.
    """
    if len(given) > MAX_PARAMETERS:
        raise invalid(field, f"must be at most {MAX_PARAMETERS}")
    for name, value in given.items():
        where = f"{field}.{name[:64]}"
        if value is None:
            continue
        parameter = target[_string(name, field)]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, int) and -(2**63) <= value < 2**64:
            if value >= 2**63 or name == "priority":
                parameter.uint64_param = _unsigned(value, where)
            else:
                parameter.int64_param = value
        elif isinstance(value, float):
            parameter.double_param = value
        elif isinstance(value, str):
            parameter.string_param = _string(value, where)
        else:
            raise invalid(where, "must be a boolean, a number of 64 bits or a string")


def _unsigned(value: int, field: str) -> int:
    if value < 0:
        raise invalid(field, "must not be negative")
    return value


def _object(value: Any, field: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise invalid(field, "must be an object")
    return value


def _items(value: Any, field: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise invalid(field, "must be a list")
    if len(value) > MAX_TENSORS:
        raise invalid(field, f"must be at most {MAX_TENSORS}")
    return value


def _string(value: Any, field: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise invalid(field, "must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise invalid(field, "holds a lone surrogate") from error
    return value


def _flag(value: Any, field: str) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise invalid(field, "must be true or false")
    return value


def _shape(value: Any, field: str) -> list[int]:
    if not isinstance(value, list) or len(value) > shapes.MAX_DIMENSIONS:
        raise invalid(field, f"must be a list of at most {shapes.MAX_DIMENSIONS} dimensions", reason="INVALID_SHAPE")
    for dimension in value:
        if type(dimension) is not int or not 0 <= dimension <= shapes.MAX_DIMENSION:
            raise invalid(field, "dimensions must be whole numbers in [0, 2^31]", reason="INVALID_SHAPE")
    return value


def raw_request(body: Buffer, model: str, version: str, metadata: pb.ModelMetadataResponse) -> Infer:
    """The request whose whole body is the data of a model's only input, in the one shape that it can have.

    Raises:
        Invalid: the model has several inputs, or several free dimensions, or the size fits no shape.
    """
    if len(metadata.inputs) != 1:
        raise invalid("body", f"raw data needs a model with one input, not {len(metadata.inputs)}")
    spec = metadata.inputs[0]
    dtype = dtypes.parse(spec.datatype)
    shape = list(spec.shape)
    if dtype is DataType.BYTES:
        body = len(body).to_bytes(4, "little") + bytes(body)
    free = [index for index, dimension in enumerate(shape) if dimension < 0]
    if len(free) > 1:
        raise invalid("body", "raw data needs an input with at most one free dimension")
    if free:
        shape[free[0]] = 1
        one = shapes.elements(shape) * dtype.size
        if dtype is not DataType.BYTES:
            if not one or len(body) % one:
                raise invalid("body", f"its size must be a multiple of {one} bytes", reason="SIZE_MISMATCH")
            shape[free[0]] = len(body) // one
    shapes.check_size(dtype, shape, len(body), "body")
    request = pb.ModelInferRequest(model_name=model, model_version=version)
    request.inputs.add(name=spec.name, datatype=spec.datatype, shape=shape)
    return Infer(request, [body], Binary({}, True))


def render(
    response: pb.ModelInferResponse, tensors: Sequence[Buffer], binary: Binary
) -> tuple[list[Buffer], int | None]:
    """The body of a response in parts, and the length of the JSON, which is the first, when binary data follows.

    Args:
        response: the answer; what it has of raw contents is not looked at.
        tensors: its raw contents.
        binary: which outputs the caller wants as binary data.

    Raises:
        Internal: the response contradicts itself.
        FailedPrecondition: JSON cannot carry an output.
    """
    tail: list[Buffer] = []
    outputs = []
    for output, raw in outputs_of(response, tensors):
        made: dict[str, Any] = {"name": output.name, "datatype": output.datatype, "shape": list(output.shape)}
        parameters = parameters_of(output.parameters)
        if raw is None:
            pass  # its place is where the caller looks
        elif binary.wants(output.name):
            parameters[_BINARY_SIZE] = len(raw)
            tail.append(raw)
        else:
            made["data"] = elements(output, raw)
        if parameters:
            made["parameters"] = parameters
        outputs.append(made)
    found: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        found["id"] = response.id
    if response.parameters:
        found["parameters"] = parameters_of(response.parameters)
    found["outputs"] = outputs
    head = json.dumps(found, separators=(",", ":"), allow_nan=False).encode()
    return [head, *tail], len(head) if tail else None


def outputs_of(
    response: pb.ModelInferResponse, tensors: Sequence[Buffer]
) -> list[tuple[pb.ModelInferResponse.InferOutputTensor, Buffer | None]]:
    """Each output with its elements, or with None when it is in shared memory, where it may have an entry or not.

    Raises:
        Internal: there are elements too many or too few.
    """
    shared = [_REGION in output.parameters for output in response.outputs]
    waiting = iter(tensors)
    if len(tensors) == len(shared):
        found = [None if elsewhere else tensor for elsewhere, tensor in zip(shared, tensors, strict=True)]
    elif len(tensors) == shared.count(False):
        found = [None if elsewhere else next(waiting) for elsewhere in shared]
    else:
        raise errors.Internal("the inference service sent outputs without data", reason="BAD_RESPONSE")
    return list(zip(response.outputs, found, strict=True))


def elements(output: pb.ModelInferResponse.InferOutputTensor, raw: Buffer, advice: str = _ASK) -> list[Any]:
    """The elements of an output as JSON values, in row-major order.

    Raises:
        FailedPrecondition: JSON cannot carry them; the message ends with `advice`.
    """
    dtype = dtypes.parse(output.datatype)
    if dtype in values.BINARY_ONLY:
        raise errors.FailedPrecondition(f"{output.name}: JSON has no {dtype.name}: {advice}", reason="BINARY_ONLY")
    array = codec.decode(dtype, output.shape, memoryview(raw))
    if dtype is DataType.BYTES:
        return values.strings(array, output.name, advice)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise errors.FailedPrecondition(
            f"{output.name}: JSON has no NaN and no infinity: {advice}", reason="NOT_FINITE"
        )
    flat: list[Any] = array.ravel().tolist()
    return flat


def parameters_of(given: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """Parameters as JSON values; real numbers that JSON does not have are left out."""
    found = {}
    for name, parameter in given.items():
        kind = parameter.WhichOneof("parameter_choice")
        value = getattr(parameter, kind) if kind else None
        if value is not None and not (isinstance(value, float) and not math.isfinite(value)):
            found[name] = value
    return found
