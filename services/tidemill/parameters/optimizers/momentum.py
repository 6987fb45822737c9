"""Stochastic gradient descent with momentum."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidemill.config import parameter
from tidemill.parameters.optimizers.base import Optimizer, State, decay, undecayed

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
        decoupled_weight_decay: bool = parameter(
            "take weight_decay, times the learning rate, off the parameters instead", False
        )
        fused: bool = parameter("twice as fast, and not to the last bit PyTorch's default", False)

    config: Config
    states = 1

    @classmethod
    def dense_only(cls, config: Any) -> str:
        """It makes steps for rows, each of which has its own time, without weight decay and dampening."""
        return undecayed(config) or ("dampening begins at the second gradient of a row" if config.dampening else "")

    def start(self, sizes: Sequence[int]) -> None:
        """The average begins with the first gradient."""
        self.tensors["momentum_buffer"] = [None] * len(sizes)

    def update(self, parameters: "list[Tensor]", gradients: "list[Tensor]", state: State, learning_rate: float) -> None:
        """Make one step in place."""
        from torch.optim.sgd import sgd

        sgd(
            parameters,
            gradients,
            state["momentum_buffer"],
            foreach=False,
            fused=self.config.fused,
            lr=learning_rate,
            weight_decay=decay(self.config, parameters, learning_rate),
            momentum=self.config.momentum,
            dampening=self.config.dampening,
            nesterov=False,
            maximize=False,
        )
