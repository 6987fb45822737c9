"""A learning rate that falls or rises linearly."""

from dataclasses import dataclass

from tidemill.config import parameter
from tidemill.schedules.base import MAX_STEPS, Schedule, Warmup


class Linear(Schedule):
    """Goes evenly from one part of the learning rate to another, as `torch.optim.lr_scheduler.LinearLR`."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config(Warmup):
        """Parameters of `Linear`."""

        steps: int = parameter("steps until the end of the line", 1000, low=1, high=MAX_STEPS)
        start: float = parameter("part of the learning rate at the first step after the warm-up", 1.0, low=0, high=1)
        end: float = parameter("part of the learning rate at the end of the line and after it", 0.0, low=0, high=1)

    config: Config

    def at(self, step: int) -> float:
        """On the line."""
        start, end = self.config.start, self.config.end
        return start + (end - start) * min(self.config.steps, step) / self.config.steps
