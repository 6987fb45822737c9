"""Values as they are."""

from dataclasses import dataclass

import numpy as np

from tidemill.codecs.base import FLOAT, Codec, Data, destination, finite, refused, sized
from tidemill.tensors.blocks import Array


class Fp32(Codec):
    """Exact, 4 bytes an element; encoding costs nothing."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """`Fp32` has no parameters."""

    carries_parameters = True

    def bytes_of(self, elements: int) -> int:
        """4 bytes an element."""
        return 4 * elements

    def encode(self, values: Array, residual: Array | None = None, out: Array | None = None) -> memoryview:
        """The bytes of `values` themselves; copied only where `out` is given."""
        if out is None:
            return values.data.cast("B")
        target = destination(out, values.nbytes)
        target[:] = values.view(np.uint8)
        return target.data

    def check(self, data: Data, elements: int) -> None:
        """Say no to another size, NaN and infinity."""
        _read(data, elements)

    def decode(self, data: Data, elements: int, out: Array) -> None:
        """Copy the values into `out`."""
        np.copyto(out, _read(data, elements))

    def accumulate(self, data: Data, elements: int, into: Array, weight: float) -> None:
        """Add the values, each multiplied by `weight`, to `into`."""
        with np.errstate(over="ignore"):
            into += _read(data, elements) * np.float32(weight)


def _read(data: Data, elements: int) -> Array:
    sized(data, 4 * elements)
    values = np.frombuffer(data, FLOAT)
    if not finite(values):
        raise refused("holds NaN or infinity", "NON_FINITE")
    return values
