"""Only the values of largest magnitude; the others are added to those of the next time."""

import math
from dataclasses import dataclass

import numpy as np

from tidemill.codecs.base import FLOAT, Codec, Data, destination, finite, refused
from tidemill.config import parameter
from tidemill.errors import invalid
from tidemill.tensors.blocks import Array

_INDEX = np.dtype("<u4")
_STRIDE = 61
"""Every which magnitude is looked at to guess the threshold: a prime, that no shape of a layer is a multiple of."""


class Topk(Codec):
    """The largest magnitudes of each block, with error feedback; 8 bytes for each that is sent.

    Of `values + residual` the largest k are sent and the others are the new residual (Stich, Cordonnier and Jaggi
    2018, Sparsified SGD with memory): all that was sent and the residual add up to all gradients. k is the fraction of
    the elements, rounded up; exactly k are sent, or all that are not zero where there are fewer; among equals the first
    ones. A sample only guesses where to look, as in Lin et al. 2018 (Deep gradient compression): it changes the time
    that is taken and never the result. Data: the rising indices (uint32), then the values (float32).
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Parameters of `Topk`."""

        fraction: float = parameter("part of the elements of a block that is sent", 0.01, low=1e-6, high=1)

    config: Config
    keeps_residual = True

    def bytes_of(self, elements: int) -> int:
        """8 bytes for each element that is sent."""
        return 8 * self._count(elements)

    def encode(self, values: Array, residual: Array | None = None, out: Array | None = None) -> memoryview:
        """The largest of `values + residual`; the rest stays in the residual. See `Codec.encode`."""
        if residual is None:
            raise TypeError("top-k without a residual would lose what it does not send")
        with np.errstate(over="ignore", invalid="ignore"):
            total = values + residual
        magnitudes = np.abs(total)
        if not magnitudes.max(initial=0) < np.inf:
            raise self._refusal(values)
        chosen = _largest(magnitudes, self._count(values.size))
        target = destination(out, 8 * chosen.size)
        indices, sent = _parts(target)
        np.copyto(indices, chosen, casting="unsafe")  # they are below 2^32
        np.take(total, chosen, out=sent)
        np.copyto(residual, total)
        residual[chosen] = 0
        return target.data

    def check(self, data: Data, elements: int) -> None:
        """Say no to too many, to indices that do not rise or end beyond the block, to NaN and infinity."""
        self._read(data, elements)

    def decode(self, data: Data, elements: int, out: Array) -> None:
        """Write what was sent into `out`, and zeros elsewhere."""
        indices, sent = self._read(data, elements)
        out.fill(0)
        out[indices] = sent

    def accumulate(self, data: Data, elements: int, into: Array, weight: float) -> None:
        """Add what was sent, multiplied by `weight`, to `into`; no other element is touched."""
        indices, sent = self._read(data, elements)
        with np.errstate(over="ignore"):
            into[indices] += sent * np.float32(weight)

    def _count(self, elements: int) -> int:
        return min(elements, math.ceil(self.config.fraction * elements))

    def _read(self, data: Data, elements: int) -> tuple[Array, Array]:
        size, most = memoryview(data).nbytes, self.bytes_of(elements)
        if size % 8 or size > most:
            raise refused(f"needs a multiple of 8 bytes and at most {most}, not {size}", "SIZE_MISMATCH")
        indices, sent = _parts(np.frombuffer(data, np.uint8))
        if indices.size and not (indices[-1] < elements and (indices[1:] > indices[:-1]).all()):
            raise refused(f"holds indices that do not rise or are not below {elements}", "BAD_ENCODING")
        if not finite(sent):
            raise refused("holds NaN or infinity", "NON_FINITE")
        return indices, sent

    def _refusal(self, values: Array) -> Exception:
        if not finite(values):
            return invalid("values", "hold NaN or infinity", reason="NON_FINITE")
        return invalid("values", "are too large to be added to the residual", reason="OVERFLOW")


def _parts(buffer: Array) -> tuple[Array, Array]:
    """The indices and the values in a buffer, as views."""
    middle = buffer.size // 2
    return buffer[:middle].view(_INDEX), buffer[middle:].view(FLOAT)


def _largest(magnitudes: Array, count: int) -> Array:
    """Rising indices of the `count` largest, zeros left out; among equals the first ones."""
    candidates = np.flatnonzero(magnitudes >= _guess(magnitudes, count))
    if candidates.size < count:
        candidates = np.flatnonzero(magnitudes)
    if candidates.size <= count:
        return candidates
    found = magnitudes[candidates]
    border = np.partition(found, found.size - count)[found.size - count]
    kept = found > border
    equal = np.flatnonzero(found == border)
    kept[equal[: count - np.count_nonzero(kept)]] = True
    chosen: Array = candidates[kept]
    return chosen


def _guess(magnitudes: Array, count: int) -> np.float32:
    """A threshold that somewhat more than `count` reach, as a sample has it; infinity where a sample is no help.

    The count in the sample varies by its root: three of those are added, lest too few reach the threshold.
    """
    sample = magnitudes[::_STRIDE]
    expected = count * sample.size / max(magnitudes.size, 1)
    rank = math.ceil(expected + 3 * math.sqrt(expected)) + 1
    if rank > sample.size // 2:
        return np.float32(np.inf)
    threshold: np.float32 = np.partition(sample, sample.size - rank)[sample.size - rank]
    return threshold if threshold > 0 else np.float32(np.inf)
