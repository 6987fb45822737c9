"""Which codec is fastest here: measured on real gradients and on the real line, not assumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tidemill.clock import Clock
from tidemill.codecs.base import FLOAT, Codec
from tidemill.errors import Invalid
from tidemill.tensors.blocks import Array

AUTO = "auto"
"""What a job says that wants a codec to be chosen."""
EXACT = "fp32"
"""The codec of the pushes that a line is measured by."""
DEFAULT = (EXACT, "bf16", "int8")
"""What may be chosen unless told otherwise, the most exact first: fp16 may overflow, and top-k changes what is
learned when."""
SAVING = 0.05
"""A less exact codec is worth it when it saves at least this part of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What it costs to send gradients by a codec."""

    codec: str
    encode: float
    """Seconds an element."""
    decode: float
    """Seconds an element, for check and decoding."""
    size: float
    """Bytes an element."""
    problem: str = ""
    """Why the codec cannot carry the sample, if so."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A codec, and why it was chosen."""

    codec: str
    seconds: Mapping[str, float]
    """What a push would take by each codec that was allowed and able."""
    reason: str
    """One sentence with the figures."""


class Meter:
    """Measures codecs on a sample of gradients: the best of several rounds, since disturbances only ever slow down.

    Args:
        clock: what time is read from.
        rounds: times that the sample is encoded and decoded.
    """

    def __init__(self, clock: Clock, rounds: int = 3) -> None:
        self._clock = clock
        self._rounds = rounds

    def measure(self, name: str, codec: Codec, sample: Sequence[Array]) -> Cost:
        """What `codec` costs, in this process.

        Args:
            name: the codec's.
            codec: as made by `catalogue.make`.
            sample: some blocks of real gradients, float32; not changed.
        """
        elements = sum(block.size for block in sample)
        residuals = [np.zeros(block.size, FLOAT) for block in sample]
        out = np.empty(max(block.size for block in sample), FLOAT)
        encoding, decoding, size = [], [], 0
        try:
            for _ in range(self._rounds):
                start = self._clock.monotonic()
                encoded = [codec.encode(block, residual) for block, residual in zip(sample, residuals, strict=True)]
                middle = self._clock.monotonic()
                for block, data in zip(sample, encoded, strict=True):
                    codec.decode(data, block.size, out[: block.size])
                encoding.append(middle - start)
                decoding.append(self._clock.monotonic() - middle)
                size = sum(data.nbytes for data in encoded)
        except Invalid as error:
            return Cost(codec=name, encode=0, decode=0, size=0, problem=error.message)
        return Cost(codec=name, encode=min(encoding) / elements, decode=min(decoding) / elements, size=size / elements)


def choose(
    costs: Sequence[Cost], *, bandwidth: float, elements: int, allowed: Sequence[str] = DEFAULT, latency: float = 0.0
) -> Choice:
    """The codec by which a push takes least time; a less exact one only if it saves `SAVING`.

    A push takes as long as the call, encoding, the line and decoding, one after the other. What fp32 itself costs is
    within `bandwidth` and taken out of it, so that the estimate for fp32 is what was measured.

    Args:
        costs: of all codecs that are allowed, and of fp32.
        bandwidth: bytes a second of whole pushes by fp32, until their acknowledgement, but for the latency.
        elements: of a push.
        allowed: names of codecs, the most exact first.
        latency: seconds that a push takes by any codec.

    Raises:
        Invalid: reason NO_CODEC, none that is allowed can carry the sample; or `bandwidth` is not positive.
    """
    if not bandwidth > 0:
        raise Invalid(f"a bandwidth of {bandwidth} bytes a second was measured", reason="NO_BANDWIDTH")
    known = {cost.codec: cost for cost in costs}
    exact = known[EXACT]
    line = max(1 / bandwidth - (exact.encode + exact.decode) / exact.size, 0.0)
    able = [known[name] for name in allowed if not known[name].problem]
    if not able:
        problems = "; ".join(f"{name}: {known[name].problem}" for name in allowed)
        raise Invalid(f"no codec that is allowed can carry these gradients: {problems}", reason="NO_CODEC")
    seconds = {cost.codec: latency + elements * (cost.encode + cost.decode + cost.size * line) for cost in able}
    best = able[0]
    for cost in able[1:]:
        if seconds[cost.codec] <= (1 - SAVING) * seconds[best.codec]:
            best = cost
    return Choice(best.codec, seconds, _reason(best, seconds, elements, line, bandwidth, latency))


def _reason(
    best: Cost, seconds: Mapping[str, float], elements: int, line: float, bandwidth: float, latency: float
) -> str:
    converting, sending = elements * (best.encode + best.decode), elements * best.size * line
    others = [f"{_time(taken)} by {name}" for name, taken in seconds.items() if name != best.codec]
    against = f", against {', '.join(others)}" if others else ""
    besides = f", {_time(latency)} in any case" if latency else ""
    return (
        f"at {bandwidth / 1e6:.4g} MB/s a push of {elements} elements takes {_time(seconds[best.codec])} by "
        f"{best.codec} ({_time(converting)} to convert, {_time(sending)} to send{besides}){against}"
    )


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"
