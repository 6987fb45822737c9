"""Tensors as models see them."""

import struct
from typing import Any

import numpy as np

from tidemill.errors import Invalid
from tidemill.inference.calls import Array
from tidemill.inference.pythonbackend.errors import TritonModelException
from tidemill.tensors import dtypes
from tidemill.tensors.dtypes import DataType

NUMBERS = {
    DataType.BOOL: 1,
    DataType.UINT8: 2,
    DataType.UINT16: 3,
    DataType.UINT32: 4,
    DataType.UINT64: 5,
    DataType.INT8: 6,
    DataType.INT16: 7,
    DataType.INT32: 8,
    DataType.INT64: 9,
    DataType.FP16: 10,
    DataType.FP32: 11,
    DataType.FP64: 12,
    DataType.BYTES: 13,
    DataType.BF16: 14,
}
"""Numbers of element types, as in model configurations."""
_BY_NUMBER = {number: kind for kind, number in NUMBERS.items()}


class Tensor:
    """A named array. Elements of BYTES are `bytes` objects; BF16 comes as float32.

    Args:
        name: of the input or output.
        array: its elements; not copied.
    """

    def __init__(self, name: str, array: Array) -> None:
        if not isinstance(array, np.ndarray):
            raise TritonModelException(
                f"tensor '{name}' is made of a numpy.ndarray, or by from_dlpack; not of {type(array).__name__}"
            )
        self._name = str(name)
        self._array = array
        try:
            self.datatype = dtypes.of(array)
        except Invalid as error:
            raise TritonModelException(f"tensor '{name}': {error.message}") from error

    @classmethod
    def typed(cls, name: str, array: Array, datatype: DataType) -> "Tensor":
        """A tensor of this element type, whose array has the type that holds it."""
        tensor = cls(name, array)
        tensor.datatype = datatype
        return tensor

    def name(self) -> str:
        """Its name."""
        return self._name

    def as_numpy(self) -> Array:
        """Its elements."""
        return self._array

    def shape(self) -> list[int]:
        """Its dimensions."""
        return list(self._array.shape)

    def triton_dtype(self) -> int:
        """The number of its element type."""
        return NUMBERS[self.datatype]

    def is_cpu(self) -> bool:
        """Whether its elements are in the memory of the CPU: they always are."""
        return True

    @staticmethod
    def from_dlpack(name: str, source: Any) -> "Tensor":
        """A tensor over the elements of a DLPack capsule, or of an object that offers one.

        What is not in the memory of the CPU, and bfloat16, is copied if its owner can do that.

        Raises:
            TritonModelException: it has strings, or elements that cannot be had here.
        """
        narrow = str(getattr(source, "dtype", "")).endswith("bfloat16")
        try:
            if hasattr(source, "detach"):
                source = source.detach().cpu()
                source = source.float() if narrow else source
            offered = source if hasattr(source, "__dlpack__") else _Capsule(source)
            array = np.from_dlpack(offered)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TritonModelException(f"tensor '{name}': {error}") from error
        return Tensor.typed(name, array, DataType.BF16) if narrow else Tensor(name, array)

    def to_dlpack(self) -> Any:
        """A DLPack capsule over its elements.

        Raises:
            TritonModelException: strings have none.
        """
        return self.__dlpack__()

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        if self.datatype is DataType.BYTES:
            raise TritonModelException("DLPack knows no strings: use as_numpy")
        array = self._array if self._array.flags.writeable else self._array.copy()
        return array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


class _Capsule:
    """Makes of a bare capsule of CPU memory an object that offers it."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def sendable(tensor: Tensor, datatype: DataType | None) -> tuple[str, DataType, tuple[Array]]:
    """A tensor as the model's configuration declares it.

    Numbers are cast to the declared type of the same kind; elements of BYTES that are no strings become their text.

    Raises:
        TritonModelException: it is of another kind.
    """
    array, wanted = tensor.as_numpy(), datatype or tensor.datatype
    if wanted is DataType.BYTES and tensor.datatype is DataType.BYTES:
        texts = np.empty(array.size, object)
        for index, element in enumerate(array.ravel()):
            texts[index] = bytes(element) if isinstance(element, bytes | bytearray) else str(element).encode()
        return tensor.name(), wanted, (texts.reshape(array.shape),)
    if DataType.BYTES in (wanted, tensor.datatype) or not np.can_cast(array.dtype, wanted.numpy, "same_kind"):
        raise TritonModelException(
            f"tensor '{tensor.name()}' has datatype {tensor.datatype.name}; the configuration declares {wanted.name}"
        )
    return tensor.name(), wanted, (array,)


def triton_string_to_numpy(text: str) -> Any:
    """The numpy type for a name as in "TYPE_FP32"; `object` for strings, None when there is none."""
    name = "BYTES" if text in ("TYPE_STRING", "TYPE_BYTES") else text.removeprefix("TYPE_")
    if name not in DataType.__members__ or name == "BF16":
        return None
    return np.object_ if name == "BYTES" else DataType[name].numpy.type


def triton_to_numpy_type(number: int) -> Any:
    """The numpy type for the number of an element type."""
    kind = _BY_NUMBER[int(number)]
    return np.object_ if kind is DataType.BYTES else kind.numpy.type


def numpy_to_triton_type(kind: Any) -> int:
    """The number of the element type that a numpy type is."""
    return NUMBERS[dtypes.of(np.empty(0, kind))]


def serialize_byte_tensor(array: Array) -> Array | None:
    """The elements one after the other, each behind its length in four little-endian bytes, as one `bytes` object.

    Returns:
        An array of no dimensions with it; an empty one for no elements; None when they are no strings.
    """
    if array.size == 0:
        return np.empty([0], dtype=np.object_)
    if array.dtype.kind not in "OS":
        return None
    parts = []
    for element in array.ravel():
        data = element if isinstance(element, bytes) else str(element).encode()
        parts += [struct.pack("<I", len(data)), data]
    return np.asarray(b"".join(parts), dtype=np.object_)


def deserialize_bytes_tensor(data: bytes) -> Array:
    """The elements that `serialize_byte_tensor` has put into one, as a flat array of `bytes`."""
    found, position = [], 0
    while position < len(data):
        (length,) = struct.unpack_from("<I", data, position)
        position += 4
        found.append(bytes(data[position : position + length]))
        position += length
    return np.array(found, dtype=np.object_)
