"""Messages of the Open Inference Protocol to tensors and back."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Invalid, Unimplemented
from tidemill.inference.calls import Answer
from tidemill.inference.inputs import InputTensor, check_count, shown
from tidemill.inference.loaded import Loaded
from tidemill.inference.repository import Entry
from tidemill.inference.signatures import TensorSpec
from tidemill.tensors import codec
from tidemill.tensors.dtypes import DataType

Array = np.ndarray[Any, Any]

_ARMS: Mapping[str, tuple[str, Any]] = {
    "BOOL": ("bool_contents", np.bool_),
    "INT8": ("int_contents", np.int32),
    "INT16": ("int_contents", np.int32),
    "INT32": ("int_contents", np.int32),
    "INT64": ("int64_contents", np.int64),
    "UINT8": ("uint_contents", np.uint32),
    "UINT16": ("uint_contents", np.uint32),
    "UINT32": ("uint_contents", np.uint32),
    "UINT64": ("uint64_contents", np.uint64),
    "FP32": ("fp32_contents", np.float32),
    "FP64": ("fp64_contents", np.float64),
    "BYTES": ("bytes_contents", object),
}
"""For each datatype that can travel typed: the list that holds its elements, and their type there."""
_UNSERVED = {
    "classification": "classification is not offered",
    "shared_memory_region": "shared memory is not offered",
}
"""Parameters of tensors that would change the answer: refused, as ignoring them would answer something else."""


def from_inputs(request: pb.ModelInferRequest) -> list[InputTensor]:
    """The inputs of a request; raw elements are not copied.

    Raises:
        Invalid: elements are given twice, in a list that does not belong to the datatype, or not for every input.
        Unimplemented: an input lies in shared memory.
    """
    model, raw = request.model_name, request.raw_input_contents
    check_count(len(request.inputs), "input")
    if raw and len(raw) != len(request.inputs):
        raise Invalid(
            f"expected {len(request.inputs)} entries in raw_input_contents for model '{shown(model)}', one for each "
            f"input, got {len(raw)}",
            reason="RAW_COUNT",
        )
    tensors = []
    for index, tensor in enumerate(request.inputs):
        _check_parameters(tensor.parameters)
        data: bytes | Array
        if raw:
            if tensor.HasField("contents"):
                raise Invalid(
                    "contents field must not be specified when using raw_input_contents for "
                    f"'{shown(tensor.name)}' for model '{shown(model)}'",
                    reason="RAW_AND_TYPED",
                )
            data = raw[index]
        else:
            data = _typed(tensor, model)
        tensors.append(InputTensor(tensor.name, tensor.datatype, tuple(tensor.shape), data))
    return tensors


def from_outputs(request: pb.ModelInferRequest) -> list[str]:
    """Names of the outputs asked for.

    Raises:
        Unimplemented: one shall be classified, or written to shared memory.
    """
    check_count(len(request.outputs), "output")
    for output in request.outputs:
        _check_parameters(output.parameters)
    return [output.name for output in request.outputs]


def to_response(request: pb.ModelInferRequest, loaded: Loaded, answer: Answer) -> pb.ModelInferResponse:
    """The answer, always with raw elements: existing clients do not look at typed ones."""
    response = pb.ModelInferResponse(model_name=loaded.version.model, model_version=loaded.label, id=request.id)
    specs = loaded.signature.output
    for name, array in answer.outputs.items():
        kind = specs[name].datatype
        response.outputs.add(name=name, datatype=kind.name, shape=array.shape)
        response.raw_output_contents.append(codec.encode(array, kind))
    return response


def to_metadata(loaded: Loaded, versions: Sequence[int]) -> pb.ModelMetadataResponse:
    """What a model takes and gives."""
    return pb.ModelMetadataResponse(
        name=loaded.version.model,
        versions=[str(version) for version in versions],
        platform=loaded.configuration.platform,
        inputs=[_to_tensor_metadata(spec) for spec in loaded.signature.inputs],
        outputs=[_to_tensor_metadata(spec) for spec in loaded.signature.outputs],
    )


def to_index(entries: Iterable[Entry]) -> pb.RepositoryIndexResponse:
    """The index of the repository."""
    response = pb.RepositoryIndexResponse()
    for entry in entries:
        response.models.add(name=entry.model, version=entry.version, state=entry.state, reason=entry.reason)
    return response


def _to_tensor_metadata(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=spec.datatype.name, shape=spec.shape)


def _check_parameters(parameters: Mapping[str, pb.InferParameter]) -> None:
    if not parameters:
        return
    for name, problem in _UNSERVED.items():
        if name in parameters:
            raise Unimplemented(f"parameter '{name}': {problem} by this server", reason="PARAMETER_UNSERVED")


def _typed(tensor: pb.ModelInferRequest.InferInputTensor, model: str) -> Array:
    """The elements of `contents`, flat."""
    arm, kind = _ARMS.get(tensor.datatype, ("", None))
    if not arm:
        known = tensor.datatype in DataType.__members__
        problem = "travels in raw_input_contents only" if known else "is no datatype"
        raise Invalid(
            f"input '{shown(tensor.name)}' for model '{shown(model)}': '{shown(tensor.datatype)}' {problem}",
            reason="WRONG_DATATYPE",
        )
    for field, _ in tensor.contents.ListFields():
        if field.name != arm:
            raise Invalid(
                f"{field.name} does not hold elements of {tensor.datatype}: use {arm} for input "
                f"'{shown(tensor.name)}' for model '{shown(model)}'",
                reason="WRONG_CONTENTS",
            )
    elements = getattr(tensor.contents, arm)
    if kind is object:
        array = np.empty(len(elements), dtype=object)
        array[:] = elements
        return array
    return np.array(elements, kind)
