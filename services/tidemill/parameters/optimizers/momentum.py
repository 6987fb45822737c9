"""Stochastic gradient descent with momentum."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidemill.config import parameter
from tidemill.parameters.optimizers.base import Optimizer

if TYPE_CHECKING:
    from torch import Tensor


class Momentum(Optimizer):
    """Gradient descent with momentum (Polyak 1964, the heavy ball), as `torch.optim.SGD` with `momentum`."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Hyperparameters of `Momentum`."""

        learning_rate: float = parameter("factor of the averaged gradient", 0.01, low=0, high=1e6)
        momentum: float = parameter("part of the average that is kept at each step", 0.9, low=0, high=1)
        dampening: float = parameter("part of each gradient that does not enter the average", 0.0, low=0, high=1)
        weight_decay: float = parameter(
            "L2 penalty: multiple of the parameters added to the gradient", 0.0, low=0, high=1
        )

    config: Config
    states = 1

    def start(self, sizes: Sequence[int]) -> None:
        """The average begins with the first gradient."""
        self.tensors["momentum_buffer"] = [None] * len(sizes)

    def update(self, parameters: "list[Tensor]", gradients: "list[Tensor]") -> None:
        """Make one step in place."""
        from torch.optim.sgd import sgd

        sgd(
            parameters,
            gradients,
            self.tensors["momentum_buffer"],
            foreach=False,
            fused=False,
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            momentum=self.config.momentum,
            dampening=self.config.dampening,
            nesterov=False,
            maximize=False,
        )
