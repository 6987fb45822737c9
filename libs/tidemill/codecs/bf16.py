"""Values as the upper halves of float32."""

from dataclasses import dataclass

import numpy as np

from tidemill.codecs._halves import Halves
from tidemill.codecs.base import finite
from tidemill.tensors.blocks import Array

_INFINITY = 0x7F80


class Bf16(Halves):
    """The range of float32 with 8 significant bits; 2 bytes an element."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """`Bf16` has no parameters."""

    kind = np.dtype("<u2")
    name = "bfloat16"
    largest = "3.39e+38"

    def narrow(self, values: Array, halves: Array) -> None:
        """Round to nearest even: add half a unit, less one bit where the lower neighbour is the even one."""
        if not finite(values):  # adding could carry a NaN into a number
            halves.fill(_INFINITY)
            return
        bits = values.view("<u4")
        rounded = bits >> 16
        rounded &= 1
        rounded += bits
        rounded += 0x7FFF
        rounded >>= 16
        np.copyto(halves, rounded, casting="same_kind")

    def widen(self, halves: Array, out: Array) -> None:
        """Convert to float32, exactly."""
        bits = out.view("<u4")
        np.copyto(bits, halves)
        bits <<= 16
