"""JSON values as elements of tensors, by the rules of TensorFlow Serving and with its error texts."""

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tidemill import errors
from tidemill.gateway.protocols import values
from tidemill.tensors.codec import Array
from tidemill.tensors.dtypes import DataType

B64 = "b64"
_SHOWN = 200
_ENCODER = json.JSONEncoder(indent=4)

NAMES: Mapping[DataType, str] = {
    DataType.BOOL: "bool",
    DataType.FP16: "half",
    DataType.BF16: "bfloat16",
    DataType.FP32: "float",
    DataType.FP64: "double",
    DataType.BYTES: "string",
    **{dtype: dtype.name.lower() for dtype in values.INTEGERS},
}
_EXACT: Mapping[DataType, int] = {DataType.FP32: 2**24 - 1, DataType.FP64: 2**53 - 1}
"""Largest whole number that a float type is trusted with."""


def has_lists(array: Array) -> bool:
    """Whether lists remain as elements: what they were made of is not rectangular."""
    return list in values.kinds(array)


def typed(found: Array, dtype: DataType) -> Array:
    """Python objects as elements of `dtype`. Raises `Invalid` for the first that is none."""
    made = _converted(found, values.kinds(found), dtype)
    if made is None:
        for value in found.ravel().tolist():
            _element(value, dtype)
        raise errors.Invalid(f"an element is not of expected type: {NAMES[dtype]}")
    return made


def _converted(found: Array, types: set[type], dtype: DataType) -> Array | None:
    if dtype in values.BINARY_ONLY:
        raise errors.Unimplemented(f"Conversion of JSON values to type: {NAMES[dtype]}")
    if dtype is DataType.BOOL:
        return found.astype(np.bool_) if types <= {bool} else None
    if dtype is DataType.BYTES:
        if not types <= {str, dict}:
            return None
        made = np.empty(found.shape, dtype=object)
        made.reshape(-1)[:] = [_element(value, dtype) for value in found.ravel().tolist()]
        return made
    if dtype in values.INTEGERS:
        return values.integers(found, dtype) if types <= {int} else None
    if not types <= {int, float}:
        return None
    flat = found.ravel().tolist()
    if int in types and any(type(value) is int and abs(value) > _EXACT[dtype] for value in flat):
        return None
    narrow = values.floats(found, dtype)
    # A finite number must not become an infinity.
    lost = np.isinf(narrow) & ~np.isinf(found.astype(np.float64))
    return None if lost.any() else narrow


def _element(value: Any, dtype: DataType) -> Any:
    """One value, checked by TensorFlow Serving's rules."""
    name = NAMES[dtype]
    if dtype is DataType.BYTES:
        return _string(value)
    wrong = errors.Invalid(
        f"JSON Value: {show(value)} Type: {_type(value)} is not of expected type: {name}", reason="INVALID_ELEMENT"
    )
    if dtype is DataType.BOOL:
        if type(value) is not bool:
            raise wrong
    elif dtype in values.INTEGERS:
        limits = np.iinfo(dtype.numpy)
        if type(value) is not int or not limits.min <= value <= limits.max:
            raise wrong
    elif type(value) not in (int, float):
        raise wrong
    elif (type(value) is int and abs(value) > _EXACT[dtype]) or (
        math.isfinite(value) and abs(value) > float(np.finfo(dtype.numpy).max)
    ):
        raise errors.Invalid(f"Cannot convert JSON value: {show(value)} to {name} without loss of precision.")
    return value


def _string(value: Any) -> bytes:
    if isinstance(value, dict):
        if not is_base64(value):
            raise errors.Invalid(f"JSON Value: {show(value)} not formatted correctly for base64 data")
        try:
            return base64.b64decode(value[B64], validate=True)
        except (binascii.Error, ValueError) as error:
            raise errors.Invalid("Unable to base64 decode") from error
    if not isinstance(value, str):
        raise errors.Invalid(
            f"JSON Value: {show(value)} Type: {_type(value)} is not of expected type: string",
            reason="INVALID_ELEMENT",
        )
    return value.encode("utf-8", "surrogatepass")


def explain(value: Any, shape: Sequence[int], level: int, dtype: DataType) -> None:
    """Raise the error of a value that does not form a tensor of `shape`, the shape of its first elements."""
    rank = len(shape)
    if not isinstance(value, list):
        if level != rank:
            raise errors.Invalid(
                f"JSON Value: {show(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {rank}"
            )
        if isinstance(value, dict) and dtype is not DataType.BYTES:
            raise errors.Invalid(f"JSON Value: {show(value)} Type: Object is not of expected type: {NAMES[dtype]}")
        _element(value, dtype)
        return
    if level >= rank:
        raise errors.Invalid(f"Encountered list at unexpected level: {level} expected < {rank}")
    if len(value) != shape[level]:
        raise errors.Invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} expected size: {shape[level]}"
        )
    for item in value:
        explain(item, shape, level + 1, dtype)


def shape_of(value: Any) -> list[int]:
    """The shape that nested lists have by their first elements."""
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def is_object(value: Any) -> bool:
    """Whether a value names inputs: an object that is not bytes in base64."""
    return isinstance(value, dict) and not is_base64(value)


def is_base64(value: Mapping[str, Any]) -> bool:
    """Whether an object is bytes in base64: it has the one key `b64`."""
    return len(value) == 1 and isinstance(value.get(B64), str)


def _type(value: Any) -> str:
    if value is None:
        return "Null"
    if isinstance(value, bool):
        return str(value)
    for kind, name in ((dict, "Object"), (list, "Array"), (str, "String")):
        if isinstance(value, kind):
            return name
    return "Number"


def show(value: Any) -> str:
    """A value for an error text, cut where nobody reads on; what is cut is not written out first."""
    text = ""
    for part in _ENCODER.iterencode(value):
        text += part[: _SHOWN + 1]
        if len(text) > _SHOWN:
            return text[:_SHOWN] + "…"
    return text


def shape_text(shape: Sequence[int]) -> str:
    """A shape in the words of the protocol."""
    return f"[{','.join(map(str, shape))}]"
