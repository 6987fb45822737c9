"""RMSprop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tidemill.config import parameter
from tidemill.parameters.optimizers.base import Optimizer, State

if TYPE_CHECKING:
    from torch import Tensor


class Rmsprop(Optimizer):
    """RMSprop (Tieleman and Hinton 2012; centered: Graves 2013), as `torch.optim.RMSprop`."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Hyperparameters of `Rmsprop`."""

        learning_rate: float = parameter("size of a step", 0.01, low=0, high=1e6)
        alpha: float = parameter("part of the mean squared gradient that is kept at each step", 0.99, low=0, high=1)
        epsilon: float = parameter("added to the denominator", 1e-8, low=1e-20, high=1)
        weight_decay: float = parameter(
            "L2 penalty: multiple of the parameters added to the gradient", 0.0, low=0, high=1
        )
        momentum: float = parameter("part of the averaged step that is kept; 0 = no average", 0.0, low=0, high=1)
        centered: bool = parameter("divide by the gradient's deviation from its mean instead of its size", False)

    config: Config
    states = 1

    @classmethod
    def states_of(cls, config: Any) -> int:
        """The mean square; the mean when centered; the averaged step with momentum."""
        return cls.states + bool(config.centered) + bool(config.momentum > 0)

    def start(self, sizes: Sequence[int]) -> None:
        """Zero means, no step made."""
        import torch

        names = ["square_avg"]
        if self.config.centered:
            names.append("grad_avg")
        if self.config.momentum > 0:
            names.append("momentum_buffer")
        for name in names:
            self.tensors[name] = [torch.zeros(size, dtype=torch.float32) for size in sizes]
        self.tensors["step"] = [torch.zeros((), dtype=torch.float32) for _ in sizes]

    def update(self, parameters: "list[Tensor]", gradients: "list[Tensor]", state: State, learning_rate: float) -> None:
        """Make one step in place."""
        from torch.optim.rmsprop import rmsprop

        tensors = cast("dict[str, list[Tensor]]", state)
        rmsprop(
            parameters,
            gradients,
            tensors["square_avg"],
            tensors.get("grad_avg", []),
            tensors.get("momentum_buffer", []),
            tensors["step"],
            foreach=False,
            lr=learning_rate,
            alpha=self.config.alpha,
            eps=self.config.epsilon,
            weight_decay=self.config.weight_decay,
            momentum=self.config.momentum,
            centered=self.config.centered,
        )
