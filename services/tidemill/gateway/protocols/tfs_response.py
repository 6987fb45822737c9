"""Responses to predict requests, by the JSON rules of TensorFlow Serving."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.protocols import values
from tidemill.gateway.protocols.tfs_values import B64, NAMES
from tidemill.tensors import codec, dtypes
from tidemill.tensors.dtypes import DataType

_BYTES_SUFFIX = "_bytes"


def render(response: pb.ModelInferResponse, *, rows: bool) -> bytes:
    """The body of a response, in the form of the request.

    Raises:
        Internal: the response contradicts itself.
        Invalid: the outputs are no rows, or hold what JSON does not carry.
    """
    if not response.outputs or len(response.raw_output_contents) != len(response.outputs):
        raise errors.Internal("the inference service sent outputs without data", reason="BAD_RESPONSE")
    tensors = {
        output.name: (tuple(output.shape), _listed(output, raw))
        for output, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    if not rows:
        columns = {name: value for name, (_, value) in tensors.items()}
        return _dump({"outputs": columns if len(columns) > 1 else next(iter(columns.values()))})
    batch = _batch_size({name: shape for name, (shape, _) in tensors.items()})
    if len(tensors) == 1:
        return _dump({"predictions": next(iter(tensors.values()))[1]})
    named = [{name: value[row] for name, (_, value) in tensors.items()} for row in range(batch)]
    return _dump({"predictions": named})


def _batch_size(found: Mapping[str, tuple[int, ...]]) -> int:
    batch = 0
    for name, shape in found.items():
        if not shape:
            raise errors.Invalid(f"Tensor name: {name} has no shape information ")
        if shape[0] < 1:
            raise errors.Invalid(f"Tensor name: {name} has invalid batch size: {shape[0]}")
        if batch and shape[0] != batch:
            raise errors.Invalid(f"Tensor name: {name} has inconsistent batch size: {shape[0]} expecting: {batch}")
        batch = shape[0]
    return batch


def _listed(output: pb.ModelInferResponse.InferOutputTensor, raw: bytes) -> Any:
    """The elements as nested lists of JSON values; floats with the fewest digits that give them back."""
    dtype = dtypes.parse(output.datatype)
    if dtype in values.BINARY_ONLY:
        raise errors.Unimplemented(f"Failed to write JSON value for tensor type: {NAMES[dtype]}")
    array = codec.decode(dtype, output.shape, raw)
    if dtype is DataType.FP32:
        shortest = [float(text) for text in array.ravel().astype("U").tolist()]
        array = np.array(shortest, np.float64).reshape(array.shape)
    elif dtype is DataType.BYTES:
        made = np.empty(array.shape, dtype=object)
        if output.name.endswith(_BYTES_SUFFIX):
            made.reshape(-1)[:] = [{B64: base64.b64encode(item).decode()} for item in array.ravel().tolist()]
        else:
            advice = f"outputs whose names end in {_BYTES_SUFFIX} are sent as base64"
            made.reshape(-1)[:] = values.strings(array, output.name, advice)
        array = made
    return array.tolist()


def _dump(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
