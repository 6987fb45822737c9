"""What a codec is: it turns a block of float32 into bytes and back."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeAlias

import numpy as np

from tidemill.errors import Invalid, invalid
from tidemill.tensors.blocks import Array

Data: TypeAlias = bytes | bytearray | memoryview

FLOAT = np.dtype("<f4")


class Codec(ABC):
    """One way for a block to travel; without state of its own, so that any threads may share one.

    Data is little-endian and depends on nothing but the values (and the residual): the same ones give the same bytes.
    What strangers send is checked before anything is written or allocated, and nothing larger than the block is.

    Args:
        config: its parameters, an instance of `Config`.
    """

    Config: ClassVar[type[Any]]
    """Its parameters: a frozen dataclass whose fields are made by `tidemill.config.parameter`."""

    keeps_residual: ClassVar[bool] = False
    """Whether `encode` needs a residual: what it has not sent so far (see `tidemill.compression.residuals`)."""

    carries_parameters: ClassVar[bool] = False
    """Whether parameters may travel so as well, not only gradients."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def bytes_of(self, elements: int) -> int:
        """Most bytes that a block of so many elements becomes."""

    @abstractmethod
    def encode(self, values: Array, residual: Array | None = None, out: Array | None = None) -> memoryview:
        """The bytes of a block.

        With a residual the same values do not give the same bytes again: encode once, and repeat the bytes.

        Args:
            values: a contiguous vector of float32; not changed.
            residual: of the same kind and size, writable, zeros at first; changed in place. Only looked at by codecs
                that keep one. After an error it is as before.
            out: where to write: a contiguous vector of at least `bytes_of(values.size)` bytes (uint8).

        Returns:
            A view of bytes: of `out` where given, else of new memory, or of `values` where they travel as they are.

        Raises:
            Invalid: with reason NON_FINITE, the values hold NaN or infinity (what travels as it is, is not looked at);
                with reason OVERFLOW, one is beyond what this codec can express.
        """

    @abstractmethod
    def check(self, data: Data, elements: int) -> None:
        """Say no to all that `encode` cannot have made.

        Raises:
            Invalid: with reason SIZE_MISMATCH, NON_FINITE or BAD_ENCODING.
        """

    @abstractmethod
    def decode(self, data: Data, elements: int, out: Array) -> None:
        """Write the values into `out`, a writable vector of `elements` float32; after an error it is as before.

        Raises:
            Invalid: as `check`.
        """

    def accumulate(self, data: Data, elements: int, into: Array, weight: float) -> None:
        """Add the values, each multiplied by `weight` in float32, to `into`; after an error it is as before.

        Raises:
            Invalid: as `check`.
        """
        values = np.empty(elements, FLOAT)
        self.decode(data, elements, values)
        with np.errstate(over="ignore"):
            values *= np.float32(weight)
            into += values


def refused(problem: str, reason: str) -> Invalid:
    """The error about data that no encoder made."""
    return invalid("data", problem, reason=reason)


def sized(data: Data, size: int) -> None:
    """Check how many bytes there are.

    Raises:
        Invalid: not `size`.
    """
    found = memoryview(data).nbytes
    if found != size:
        raise refused(f"needs {size} bytes, not {found}", "SIZE_MISMATCH")


def finite(values: Array) -> bool:
    """Whether no value is NaN or infinity; float32, float16 or the upper halves of float32 (uint16).

    Two reductions of the bits and no temporary. Above zero signed bits rise with the magnitude, below it unsigned do.
    """
    if not values.size:
        return True
    size = values.dtype.itemsize
    infinity = 0x7C00 if values.dtype.kind == "f" and size == 2 else 0x7F80 if size == 2 else 0x7F800000
    sign = 1 << (8 * size - 1)
    positive, negative = values.view(f"<i{size}").max(), values.view(f"<u{size}").max()
    return bool(positive < infinity and negative < infinity + sign)


def destination(out: Array | None, size: int) -> Array:
    """`size` bytes to write to: the first ones of `out`, or new ones."""
    return np.empty(size, np.uint8) if out is None else out[:size]
