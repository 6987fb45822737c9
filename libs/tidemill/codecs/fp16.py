"""Values as IEEE 754 binary16."""

from dataclasses import dataclass

import numpy as np

from tidemill.codecs._halves import Halves, loaded_torch
from tidemill.tensors.blocks import Array


class Fp16(Halves):
    """Half precision: 11 significant bits, up to 65504 and down to 6e-8; 2 bytes an element."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """`Fp16` has no parameters."""

    kind = np.dtype("<f2")
    name = "float16"
    largest = "65504"

    def narrow(self, values: Array, halves: Array) -> None:
        """Round to nearest even."""
        with np.errstate(over="ignore"):
            np.copyto(halves, values, casting="same_kind")

    def widen(self, halves: Array, out: Array) -> None:
        """Convert to float32, exactly."""
        torch = loaded_torch()
        if torch is None:
            np.copyto(out, halves)
        else:
            torch.from_numpy(out).copy_(torch.from_numpy(halves.copy()))  # a copy, because the data is read-only
