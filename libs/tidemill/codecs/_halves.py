"""What both 16-bit formats share: conversion by PyTorch where a process has it, refusal of what does not fit."""

import importlib
import sys
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np

from tidemill.codecs.base import Codec, Data, destination, finite, refused, sized
from tidemill.errors import invalid
from tidemill.tensors.blocks import Array


class Halves(Codec):
    """A codec of 2 bytes an element, rounded to nearest even: the error is at most half a unit in the last place."""

    carries_parameters = True

    kind: ClassVar["np.dtype[Any]"]
    """How numpy sees an encoded element."""
    name: ClassVar[str]
    """How PyTorch calls the format."""
    largest: ClassVar[str]
    """The largest number, for messages."""

    @abstractmethod
    def narrow(self, values: Array, halves: Array) -> None:
        """Round float32 into `halves` with numpy alone; what does not fit becomes infinity or NaN."""

    @abstractmethod
    def widen(self, halves: Array, out: Array) -> None:
        """Convert checked halves to float32."""

    def bytes_of(self, elements: int) -> int:
        """2 bytes an element."""
        return 2 * elements

    def encode(self, values: Array, residual: Array | None = None, out: Array | None = None) -> memoryview:
        """The rounded values; see `Codec.encode`."""
        target = destination(out, 2 * values.size)
        halves = target.view(self.kind)
        torch = loaded_torch()
        if torch is None:
            self.narrow(values, halves)
        else:
            source = values if values.flags.writeable else values.copy()  # it warns of memory that it must not write
            there = torch.from_numpy(target.view("<i2")).view(getattr(torch, self.name))
            there.copy_(torch.from_numpy(source))
        if not finite(halves):
            raise self._refusal(values)
        return target.data

    def check(self, data: Data, elements: int) -> None:
        """Say no to another size, NaN and infinity."""
        self._read(data, elements)

    def decode(self, data: Data, elements: int, out: Array) -> None:
        """Write the widened values into `out`."""
        self.widen(self._read(data, elements), out)

    def _read(self, data: Data, elements: int) -> Array:
        sized(data, 2 * elements)
        halves = np.frombuffer(data, self.kind)
        if not finite(halves):
            raise refused("holds NaN or infinity", "NON_FINITE")
        return halves

    def _refusal(self, values: Array) -> Exception:
        if not finite(values):
            return invalid("values", "hold NaN or infinity", reason="NON_FINITE")
        index = int(np.abs(values).argmax())
        problem = f"element {index} is {values[index]:.6g}, but {type(self).__name__.lower()} ends at {self.largest}"
        return invalid("values", problem, reason="OVERFLOW")


def loaded_torch() -> Any | None:
    """PyTorch, if this process has it already: its conversions are several times faster than numpy's."""
    # `import_module` waits for an import that is under way in another thread.
    return importlib.import_module("torch") if "torch" in sys.modules else None
