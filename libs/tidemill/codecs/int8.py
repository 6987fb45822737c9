"""Values as small multiples of a scale for each 4096 of them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tidemill.codecs.base import FLOAT, Codec, Data, destination, refused, sized
from tidemill.errors import invalid
from tidemill.tensors.blocks import Array

GROUP = 4096
"""Elements that share a scale."""
_LEAST = np.float32(2.0**-126)
_MOST = np.float32(np.finfo(FLOAT).max / 127)


class Int8(Codec):
    """Symmetric 8-bit integers with a scale for each 4096 elements: the error is at most half the scale.

    The scale is the largest magnitude divided by 127, cut to 16 significant bits. Therefore any multiple of it by up
    to 127, and by any half between, is a float32: rounding the float32 quotient rounds the exact one, decoding is
    exact, and the bound of the error holds to the last bit. Data: all scales (float32), then all integers.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """`Int8` has no parameters."""

    def bytes_of(self, elements: int) -> int:
        """1 byte an element, and 4 for each 4096 begun."""
        return elements + 4 * math.ceil(elements / GROUP)

    def encode(self, values: Array, residual: Array | None = None, out: Array | None = None) -> memoryview:
        """Scales and integers; see `Codec.encode`."""
        target = destination(out, self.bytes_of(values.size))
        scales, integers = _parts(target, values.size)
        for part, rows, scale in _grouped(values, integers, scales):
            quotients = np.abs(part)
            largest = quotients.max(axis=1)
            if not (largest < np.inf).all():
                raise invalid("values", "hold NaN or infinity", reason="NON_FINITE")
            exact = largest / np.float32(127)
            exact.view("<u4")[:] &= 0xFFFFFF00
            scale[:] = np.maximum(exact, _LEAST)
            np.divide(part, scale[:, np.newaxis], out=quotients)
            np.rint(quotients, out=quotients)
            np.copyto(rows, quotients, casting="unsafe")
        return target.data

    def check(self, data: Data, elements: int) -> None:
        """Say no to another size, a scale that is not a normal number and an integer beyond 127."""
        self._read(data, elements)

    def decode(self, data: Data, elements: int, out: Array) -> None:
        """Write integers times scales into `out`."""
        scales, integers = self._read(data, elements)
        for part, rows, scale in _grouped(out, integers, scales):
            np.multiply(rows, scale[:, np.newaxis], out=part)

    def _read(self, data: Data, elements: int) -> tuple[Array, Array]:
        sized(data, self.bytes_of(elements))
        scales, integers = _parts(np.frombuffer(data, np.uint8), elements)
        if not np.isfinite(scales).all():
            raise refused("holds a scale that is NaN or infinity", "NON_FINITE")
        if not ((scales >= _LEAST) & (scales <= _MOST)).all():
            raise refused("holds a scale out of range", "BAD_ENCODING")
        if elements and integers.min() < -127:
            raise refused("holds an integer below -127", "BAD_ENCODING")
        return scales, integers


def _parts(buffer: Array, elements: int) -> tuple[Array, Array]:
    """The scales and the integers in a buffer, as views."""
    end = 4 * math.ceil(elements / GROUP)
    return buffer[:end].view(FLOAT), buffer[end:].view(np.int8)


def _grouped(values: Array, integers: Array, scales: Array) -> Iterator[tuple[Array, Array, Array]]:
    """All whole groups as rows of a matrix, then the rest as one row: values, integers and scales of each."""
    whole = values.size // GROUP
    for groups, elements in (
        (slice(0, whole), slice(0, whole * GROUP)),
        (slice(whole, None), slice(whole * GROUP, None)),
    ):
        rows = scales[groups]
        if rows.size:
            yield values[elements].reshape(rows.size, -1), integers[elements].reshape(rows.size, -1), rows
