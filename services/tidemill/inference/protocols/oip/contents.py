"""Typed elements: the lists of `InferTensorContents`, one for each kind of element."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Invalid
from tidemill.inference.inputs import shown
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


def elements(tensor: pb.ModelInferRequest.InferInputTensor, model: str) -> Array:
    """The elements of an input, flat.

    Raises:
        Invalid: its datatype cannot travel typed, or they are in a list that does not belong to it.
    """
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
    found = getattr(tensor.contents, arm)
    if kind is object:
        array = np.empty(len(found), dtype=object)
        array[:] = found
        return array
    return np.array(found, kind)


def typed(kind: DataType) -> bool:
    """Whether elements of this kind can travel typed."""
    return kind.name in _ARMS


def put(contents: pb.InferTensorContents, array: Array, kind: DataType) -> None:
    """Set the elements of an output, whose kind can travel typed."""
    flat = array.ravel().tolist()
    if kind is DataType.BYTES:
        flat = [element.encode() if isinstance(element, str) else element for element in flat]
    getattr(contents, _ARMS[kind.name][0]).extend(flat)
