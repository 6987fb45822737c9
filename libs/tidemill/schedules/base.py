"""What a schedule is: the part of the learning rate that each step of the optimizer takes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from tidemill.config import parameter

MAX_STEPS = 10**12
"""Most steps that a schedule can be told of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmup:
    """What all schedules can be told."""

    warmup_steps: int = parameter(
        "steps before the schedule begins, over which the learning rate rises evenly from near zero to all of it",
        0,
        low=0,
        high=MAX_STEPS,
    )


class Schedule(ABC):
    """A schedule. It keeps nothing: each factor follows from the number of the step.

    With w warm-up steps, step t < w has the factor (t + 1) / (w + 1) (Goyal et al. 2017, the gradual warm-up; as
    `torch.optim.lr_scheduler.LinearLR` from 1 / (w + 1) over w steps); the schedule itself begins at step w.

    Args:
        config: its parameters, an instance of `Config`.
    """

    Config: ClassVar[type[Warmup]]
    """Its parameters: a frozen dataclass that extends `Warmup`, of fields made by `tidemill.config.parameter`."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def factor(self, step: int) -> float:
        """Factor of the learning rate at a step, counted from 0."""
        warmup: int = self.config.warmup_steps
        return (step + 1) / (warmup + 1) if step < warmup else self.at(step - warmup)

    @abstractmethod
    def at(self, step: int) -> float:
        """Factor at a step after the warm-up, counted from 0."""
