"""Shapes that strangers send: checked in Python integers, before anything is allocated."""

from collections.abc import Sequence

from tidemill.errors import invalid
from tidemill.tensors.dtypes import DataType

MAX_DIMENSIONS = 8
MAX_DIMENSION = 2**31


def elements(shape: Sequence[int], field: str = "shape") -> int:
    """Number of elements of a tensor of this shape.

    Raises:
        Invalid: too many dimensions, a negative or huge one, or a product beyond 2^48 (zeros left out: no library
            computes strides beyond that, even for a tensor without elements).
    """
    if len(shape) > MAX_DIMENSIONS:
        raise invalid(field, f"must have at most {MAX_DIMENSIONS} dimensions, not {len(shape)}", reason="INVALID_SHAPE")
    product = 1
    for dimension in shape:
        if not 0 <= dimension <= MAX_DIMENSION:
            raise invalid(field, f"dimension {dimension} is not in [0, 2^31]", reason="INVALID_SHAPE")
        product *= dimension or 1
    if product > 2**48:
        raise invalid(field, "has more than 2^48 elements", reason="INVALID_SHAPE")
    return 0 if 0 in shape else product


def check_size(dtype: DataType, shape: Sequence[int], size: int, field: str = "data") -> int:
    """Number of elements, when `size` bytes are exactly what `dtype` and `shape` ask for (BYTES: at least 4 each).

    Raises:
        Invalid: the shape is bad, or the size does not match it.
    """
    count = elements(shape)
    wanted = count * (dtype.size or 4)
    if size != wanted and not (dtype is DataType.BYTES and size > wanted):
        raise invalid(
            field, f"{dtype.name} of shape {list(shape)} needs {wanted} bytes, not {size}", reason="SIZE_MISMATCH"
        )
    return count
