"""Tensors to raw little-endian bytes and back."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from tidemill.errors import invalid
from tidemill.tensors.dtypes import DataType
from tidemill.tensors.shapes import check_size

Array = np.ndarray[Any, Any]


def decode(dtype: DataType, shape: Sequence[int], data: bytes | memoryview, field: str = "data") -> Array:
    """An array of `shape` over `data`, without a copy where the element type allows (then it is read-only).

    BF16 is widened to float32; BYTES gives an object array of `bytes`.

    Raises:
        Invalid: shape and size do not match, or BYTES elements run over the end.
    """
    count = check_size(dtype, shape, len(data), field)
    if dtype is DataType.BYTES:
        return _decode_elements(data, count, field).reshape(tuple(shape))
    if dtype is DataType.BF16:
        halves = np.frombuffer(data, "<u2").astype("<u4")
        return (halves << 16).view("<f4").reshape(tuple(shape))
    return np.frombuffer(data, dtype.numpy).reshape(tuple(shape))


def encode(array: Array, dtype: DataType) -> bytes:
    """The raw bytes of `array` as elements of `dtype`, in row-major order; floats to BF16 round to nearest even.

    Raises:
        Invalid: BYTES elements that are neither `bytes` nor `str`.
    """
    if dtype is DataType.BYTES:
        return _encode_elements(array)
    if dtype is DataType.BF16:
        return _round_to_bf16(np.ascontiguousarray(array, "<f4")).tobytes()
    return np.ascontiguousarray(array, dtype.numpy).tobytes()


def _round_to_bf16(array: Array) -> Array:
    bits = array.view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Adding could carry a NaN into infinity: keep NaNs quiet instead.
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype("<u2")


def _decode_elements(data: bytes | memoryview, count: int, field: str) -> Array:
    view = memoryview(data)
    out = np.empty(count, dtype=object)
    position = 0
    for index in range(count):
        end = position + 4
        length = struct.unpack_from("<I", view, position)[0] if end <= len(view) else -1
        if length < 0 or end + length > len(view):
            raise invalid(field, f"BYTES element {index} runs over the end", reason="SIZE_MISMATCH")
        out[index] = bytes(view[end : end + length])
        position = end + length
    if position != len(view):
        raise invalid(
            field, f"{len(view) - position} bytes are left after {count} BYTES elements", reason="SIZE_MISMATCH"
        )
    return out


def _encode_elements(array: Array) -> bytes:
    parts = []
    for element in array.ravel():
        if isinstance(element, str):
            element = element.encode()
        if not isinstance(element, bytes):
            raise invalid("data", f"BYTES elements must be bytes or str, not {type(element).__name__}")
        parts.append(struct.pack("<I", len(element)) + element)
    return b"".join(parts)
