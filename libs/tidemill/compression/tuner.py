"""Finds the codec of a worker's pushes in its first steps: by what they took, and by what codecs cost here."""

import math
from collections.abc import Callable, Sequence

from tidemill.clock import SystemClock
from tidemill.compression import catalogue
from tidemill.compression.choice import DEFAULT, EXACT, Choice, Cost, Meter, choose
from tidemill.tensors.blocks import Array

PUSHES = 4
"""Pushes of each kind that are timed: the first ones open connections."""
PROBE = "bf16"
"""What is sent in turn with exact pushes: half of the bytes, and nearly no conversion."""
SMALL = 1 << 16
"""Bytes of a push below which it is the call that takes time, not the bytes."""
SAMPLE = 4
"""Blocks of gradients that codecs are measured with."""
LEAST = 1e-3
"""Part of a push that is the line's at least: less cannot be told from noise."""


def measured(sample: Sequence[Array]) -> list[Cost]:
    """What the codecs that may be chosen cost in this process."""
    meter = Meter(SystemClock())
    return [meter.measure(name, catalogue.make(name), sample) for name in DEFAULT]


class Tuner:
    """Times exact pushes and ones of half the bytes in turn, then chooses. Not safe for threads.

    What the second kind takes less is the line's, but for the conversion. All else that a push takes (the call, the
    optimizer, waits for other workers) it takes by any codec.

    Args:
        measure: what codecs cost with some blocks of gradients.
        pushes: how many of each kind are timed.
    """

    def __init__(self, measure: Callable[[Sequence[Array]], Sequence[Cost]] = measured, pushes: int = PUSHES) -> None:
        self._measure = measure
        self._left = {EXACT: pushes, PROBE: pushes}
        self._best = {EXACT: math.inf, PROBE: math.inf}
        self._elements = 0
        self.choice: Choice | None = None
        """Once it is made."""

    @property
    def codec(self) -> str:
        """Of the next push."""
        if self.choice is not None:
            return self.choice.codec
        return EXACT if self._left[EXACT] >= self._left[PROBE] else PROBE

    @property
    def is_due(self) -> bool:
        """Whether enough pushes were timed, and nothing is chosen yet."""
        return self.choice is None and not any(self._left.values())

    def pushed(self, elements: int, seconds: float) -> None:
        """Note what a push by `codec` took.

        Args:
            elements: that went in messages; 0 = all that was pushed is shared.
            seconds: until the last acknowledgement.
        """
        if not elements:
            self.choice = Choice(EXACT, {}, "what is pushed lies in memory that is shared with the shards")
        elif 4 * elements < SMALL:
            self.choice = Choice(EXACT, {}, f"a push has {4 * elements} bytes: too few for a codec to save time")
        elif not self.is_due:
            kind, self._elements = self.codec, elements
            self._best[kind] = min(self._best[kind], seconds)  # disturbances only ever make it longer
            self._left[kind] -= 1

    def choose(self, blocks: Sequence[Array]) -> Choice:
        """Choose by the blocks of the next push; a few are looked at."""
        costs = {cost.codec: cost for cost in self._measure(blocks[:: -(-len(blocks) // SAMPLE)])}
        exact, probe, elements = costs[EXACT], costs[PROBE], self._elements
        converting = elements * (exact.encode + exact.decode)
        saved = self._best[EXACT] - self._best[PROBE]
        saved += elements * (probe.encode + probe.decode) - converting
        sending = max(saved * exact.size / (exact.size - probe.size), LEAST * self._best[EXACT])
        latency = max(self._best[EXACT] - converting - sending, 0.0)
        bandwidth = elements * exact.size / (self._best[EXACT] - latency)
        self.choice = choose(list(costs.values()), bandwidth=bandwidth, elements=elements, latency=latency)
        return self.choice
