"""A learning rate that falls in steps."""

from dataclasses import dataclass

from tidemill.config import parameter
from tidemill.schedules.base import MAX_STEPS, Schedule, Warmup


class Step(Schedule):
    """Falls to a part of itself after every so many steps, as `torch.optim.lr_scheduler.StepLR`."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Warmup):
        """Parameters of `Step`."""

        every: int = parameter("steps between two falls", 1000, low=1, high=MAX_STEPS)
        gamma: float = parameter("part of the learning rate that is left after a fall", 0.1, low=0, high=1)

    config: Config

    def at(self, step: int) -> float:
        """What the falls so far have left."""
        return float(self.config.gamma ** (step // self.config.every))
