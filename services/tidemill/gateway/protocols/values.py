"""Values of JSON documents as arrays: typed exactly, and sized before anything large is made of them."""

import math
from typing import Any

import numpy as np

from tidemill.errors import FailedPrecondition, invalid
from tidemill.tensors import shapes
from tidemill.tensors.codec import Array
from tidemill.tensors.dtypes import DataType

INTEGERS = frozenset(
    {
        DataType.INT8,
        DataType.INT16,
        DataType.INT32,
        DataType.INT64,
        DataType.UINT8,
        DataType.UINT16,
        DataType.UINT32,
        DataType.UINT64,
    }
)
BINARY_ONLY = frozenset({DataType.FP16, DataType.BF16})
"""Element types that JSON does not carry."""


def objects(value: Any, field: str) -> Array:
    """The values in nested lists as an array of Python objects, whose shape is that of the lists.

    What is not rectangular comes out with lists as elements.

    Raises:
        Invalid: the lists are nested deeper than any tensor.
    """
    depth, inner = 0, value
    while isinstance(inner, list) and inner:
        depth, inner = depth + 1, inner[0]
    if depth > shapes.MAX_DIMENSIONS:
        raise invalid(field, f"must have at most {shapes.MAX_DIMENSIONS} dimensions", reason="INVALID_SHAPE")
    if not isinstance(value, list):
        made = np.empty((), dtype=object)
        made[()] = value
        return made
    return np.array(value, dtype=object)


def kinds(array: Array) -> set[type]:
    """The types of the elements."""
    return set(map(type, array.ravel().tolist()))


def integers(array: Array, dtype: DataType) -> Array | None:
    """Python integers as elements of an integer type; None when one is out of its range."""
    limits = np.iinfo(dtype.numpy)
    values = array.ravel().tolist()
    if values and not (limits.min <= min(values) and max(values) <= limits.max):
        return None
    return array.astype(dtype.numpy)


def floats(array: Array, dtype: DataType) -> Array:
    """Python numbers as elements of a float type; what is too large for it becomes an infinity."""
    try:
        wide = array.astype(np.float64)
    except OverflowError:  # an integer beyond every float
        wide = np.array([_float(value) for value in array.ravel().tolist()], np.float64).reshape(array.shape)
    with np.errstate(over="ignore"):
        narrow: Array = wide.astype(dtype.numpy)
    return narrow


def _float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def array(value: Any, dtype: DataType, field: str) -> Array:
    """The values in nested lists, as elements of `dtype`. For BYTES, strings become their UTF-8.

    Raises:
        Invalid: the lists are not rectangular, or an element is not of the type, or not finite.
    """
    if dtype in BINARY_ONLY:
        raise invalid(field, f"{dtype.name} travels as binary data only", reason="BINARY_ONLY")
    found = objects(value, field)
    types = kinds(found)
    if list in types:
        raise invalid(field, "its lists are not rectangular", reason="INVALID_SHAPE")
    made: Array | None = None
    if dtype is DataType.BOOL and types <= {bool}:
        made = found.astype(np.bool_)
    elif dtype is DataType.BYTES and types <= {str}:
        made = _encoded(found, field)
    elif dtype in INTEGERS and types <= {int}:
        made = integers(found, dtype)
    elif dtype in (DataType.FP32, DataType.FP64) and types <= {int, float}:
        made = floats(found, dtype)
        if not np.isfinite(made).all():
            made = None
    if made is None:
        raise invalid(field, f"an element is not a value of {dtype.name}", reason="INVALID_ELEMENT")
    return made


def _encoded(found: Array, field: str) -> Array:
    made = np.empty(found.shape, dtype=object)
    try:
        made.reshape(-1)[:] = [text.encode() for text in found.ravel().tolist()]
    except UnicodeEncodeError as error:
        raise invalid(field, "a string holds a lone surrogate", reason="INVALID_ELEMENT") from error
    return made


def strings(array: Array, field: str, advice: str) -> list[str]:
    """The elements of a BYTES tensor as text, in row-major order.

    Raises:
        FailedPrecondition: one is not UTF-8; the message ends with `advice`.
    """
    try:
        return [element.decode() for element in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise FailedPrecondition(f"{field}: an element is not UTF-8: {advice}", reason="NOT_TEXT") from error
