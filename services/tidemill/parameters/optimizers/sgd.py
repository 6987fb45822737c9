"""Stochastic gradient descent."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidemill.config import parameter
from tidemill.parameters.optimizers.base import Optimizer, State, decay, undecayed

if TYPE_CHECKING:
    from torch import Tensor


class Sgd(Optimizer):
    """Stochastic gradient descent (Robbins and Monro 1951), as `torch.optim.SGD`."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Hyperparameters of `Sgd`."""

        learning_rate: float = parameter("factor of the gradient", 0.01, low=0, high=1e6)
        weight_decay: float = parameter(
            "L2 penalty: multiple of the parameters added to the gradient", 0.0, low=0, high=1
        )
        decoupled_weight_decay: bool = parameter(
            "take weight_decay, times the learning rate, off the parameters instead", False
        )
        fused: bool = parameter("one and a half times as fast, and not to the last bit PyTorch's default", False)

    config: Config
    states = 0

    @classmethod
    def dense_only(cls, config: Any) -> str:
        """It makes steps for rows, without weight decay."""
        return undecayed(config)

    def start(self, sizes: Sequence[int]) -> None:
        """There is no state."""

    def update(self, parameters: "list[Tensor]", gradients: "list[Tensor]", state: State, learning_rate: float) -> None:
        """Make one step in place."""
        from torch.optim.sgd import sgd

        sgd(
            parameters,
            gradients,
            [None] * len(parameters),
            foreach=False,
            fused=self.config.fused,
            lr=learning_rate,
            weight_decay=decay(self.config, parameters, learning_rate),
            momentum=0.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
