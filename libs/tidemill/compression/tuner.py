"""Finds the codec of a worker's pushes in its first steps: by what they took, and by what codecs cost here."""

from collections.abc import Callable, Sequence

from tidemill.clock import SystemClock
from tidemill.compression import catalogue
from tidemill.compression.choice import DEFAULT, EXACT, Choice, Cost, Meter, choose
from tidemill.tensors.blocks import Array

PUSHES = 4
"""Exact pushes that are timed: the first ones open connections."""
SMALL = 1 << 16
"""Bytes of a push below which it is the call that takes time, not the bytes."""
SAMPLE = 4
"""Blocks of gradients that codecs are measured with."""


def measured(sample: Sequence[Array]) -> list[Cost]:
    """What the codecs that may be chosen cost in this process."""
    meter = Meter(SystemClock())
    return [meter.measure(name, catalogue.make(name), sample) for name in DEFAULT]


class Tuner:
    """Takes the times of the first pushes, then chooses. Not safe for threads.

    Args:
        measure: what codecs cost with some blocks of gradients.
        pushes: how many are timed.
    """

    def __init__(self, measure: Callable[[Sequence[Array]], Sequence[Cost]] = measured, pushes: int = PUSHES) -> None:
        self._measure = measure
        self._left = pushes
        self._sent = 0
        self._push = self._call = float("inf")
        self.choice: Choice | None = None
        """Once it is made."""

    @property
    def is_due(self) -> bool:
        """Whether enough pushes were timed, and nothing is chosen yet."""
        return self.choice is None and not self._left

    def pushed(self, sent: int, seconds: float, call: float) -> None:
        """Note what a push by fp32 took.

        Args:
            sent: bytes in messages; 0 = all that was pushed is shared.
            seconds: until the last acknowledgement.
            call: seconds that a push takes which carries nothing.
        """
        if not sent:
            self.choice = Choice(EXACT, {}, "what is pushed lies in memory that is shared with the shards")
        elif sent < SMALL:
            self.choice = Choice(EXACT, {}, f"a push has {sent} bytes: too few for a codec to save time")
        else:
            # Disturbances, and waits for others, only ever make it longer.
            self._sent, self._push, self._call = sent, min(self._push, seconds), min(self._call, call)
            self._left = max(0, self._left - 1)

    def choose(self, blocks: Sequence[Array]) -> Choice:
        """Choose by the blocks of the next push; a few are looked at."""
        costs = self._measure(blocks[:: -(-len(blocks) // SAMPLE)])
        call = min(self._call, self._push / 2)
        bandwidth = self._sent / (self._push - call)
        self.choice = choose(costs, bandwidth=bandwidth, elements=self._sent // 4, latency=call)
        return self.choice
