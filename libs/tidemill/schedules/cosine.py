"""A learning rate that falls along a cosine."""

import math
from dataclasses import dataclass

from tidemill.config import parameter
from tidemill.schedules.base import MAX_STEPS, Schedule, Warmup


class Cosine(Schedule):
    """Falls along half a cosine to a minimum and stays there (Loshchilov and Hutter 2017), as `CosineAnnealingLR`."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Warmup):
        """Parameters of `Cosine`."""

        steps: int = parameter("steps until the minimum", 1000, low=1, high=MAX_STEPS)
        minimum: float = parameter("part of the learning rate that is left at the end", 0.0, low=0, high=1)

    config: Config

    def at(self, step: int) -> float:
        """On the way from 1 to the minimum."""
        least, done = self.config.minimum, min(1.0, step / self.config.steps)
        return least + (1 - least) * (1 + math.cos(math.pi * done)) / 2
