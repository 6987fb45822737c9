"""A learning rate that falls exponentially."""

from dataclasses import dataclass

from tidemill.config import parameter
from tidemill.schedules.base import Schedule, Warmup


class Exponential(Schedule):
    """Falls to a part of itself at every step, as `torch.optim.lr_scheduler.ExponentialLR`."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Warmup):
        """Parameters of `Exponential`."""

        gamma: float = parameter("part of the learning rate that is left after each step", 0.999, low=0, high=1)

    config: Config

    def at(self, step: int) -> float:
        """What all steps so far have left."""
        return float(self.config.gamma**step)
