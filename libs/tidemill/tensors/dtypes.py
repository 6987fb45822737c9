"""Element types: their names on the wire, sizes and numpy counterparts."""

from enum import Enum
from typing import Any

import numpy as np

from tidemill.errors import Invalid, invalid


class DataType(Enum):
    """An element type. The value is the number of `tidemill.api.tensors.v1.DataType`, the name that of the OIP."""

    BOOL = 1
    UINT8 = 2
    UINT16 = 3
    UINT32 = 4
    UINT64 = 5
    INT8 = 6
    INT16 = 7
    INT32 = 8
    INT64 = 9
    FP16 = 10
    FP32 = 11
    FP64 = 12
    BF16 = 13
    BYTES = 14

    @property
    def size(self) -> int:
        """Bytes an element; 0 for BYTES, whose elements vary."""
        return _SIZES[self]

    @property
    def numpy(self) -> "np.dtype[Any]":
        """The numpy type that holds it: BF16 is widened to float32, BYTES is an array of `bytes` objects."""
        return _NUMPY[self]


_NUMPY: dict[DataType, "np.dtype[Any]"] = {
    DataType.BOOL: np.dtype("?"),
    DataType.UINT8: np.dtype("<u1"),
    DataType.UINT16: np.dtype("<u2"),
    DataType.UINT32: np.dtype("<u4"),
    DataType.UINT64: np.dtype("<u8"),
    DataType.INT8: np.dtype("<i1"),
    DataType.INT16: np.dtype("<i2"),
    DataType.INT32: np.dtype("<i4"),
    DataType.INT64: np.dtype("<i8"),
    DataType.FP16: np.dtype("<f2"),
    DataType.FP32: np.dtype("<f4"),
    DataType.FP64: np.dtype("<f8"),
    DataType.BF16: np.dtype("<f4"),
    DataType.BYTES: np.dtype("O"),
}
_SIZES = {
    kind: 2 if kind is DataType.BF16 else 0 if kind is DataType.BYTES else t.itemsize for kind, t in _NUMPY.items()
}
_BY_NUMPY = {t: kind for kind, t in _NUMPY.items() if kind not in (DataType.BF16, DataType.BYTES)}


def parse(name: str, field: str = "datatype") -> DataType:
    """The element type of this OIP name.

    Raises:
        Invalid: there is none.
    """
    try:
        return DataType[name]
    except KeyError:
        known = ", ".join(kind.name for kind in DataType)
        raise invalid(field, f"{name[:32]!r} is not one of {known}", reason="UNKNOWN_DATATYPE") from None


def of(array: "np.ndarray[Any, Any]") -> DataType:
    """The element type of a numpy array; strings and objects are BYTES.

    Raises:
        Invalid: no element type holds such values (complex numbers, dates).
    """
    if array.dtype.kind in "OSU":
        return DataType.BYTES
    try:
        return _BY_NUMPY[array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype]
    except KeyError:
        raise Invalid(f"arrays of {array.dtype} cannot be sent", reason="UNKNOWN_DATATYPE") from None


def fit(array: "np.ndarray[Any, Any]", name: str) -> "np.ndarray[Any, Any]":
    """Numbers as the element type of this OIP name, since files and JSON know fewer types than models do.

    No more is lost than digits of a float. What is no number, or is wanted as BYTES, stays as it is.

    Raises:
        Invalid: there is no such element type, or a value that it cannot hold.
    """
    wanted = parse(name)
    if array.dtype.kind not in "biuf" or wanted is DataType.BYTES or array.dtype == wanted.numpy:
        return array
    with np.errstate(all="ignore"):
        fitted = array.astype(wanted.numpy)
    same = np.isfinite(fitted) == np.isfinite(array) if fitted.dtype.kind == "f" else fitted == array
    if not same.all():
        raise Invalid(f"some values cannot be {name}", reason="VALUE_OUT_OF_RANGE")
    return fitted
