"""Adam with decoupled weight decay."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tidemill.config import parameter
from tidemill.parameters.optimizers.base import Optimizer, State

if TYPE_CHECKING:
    from torch import Tensor


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, algorithm 2), as `torch.optim.AdamW`."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Hyperparameters of `AdamW`."""

        learning_rate: float = parameter("size of a step", 0.001, low=0, high=1e6)
        beta1: float = parameter("part of the mean gradient that is kept at each step", 0.9, low=0, high=0.999999)
        beta2: float = parameter("part of the mean squared gradient that is kept", 0.999, low=0, high=0.999999)
        epsilon: float = parameter("added to the denominator", 1e-8, low=1e-20, high=1)
        weight_decay: float = parameter(
            "part of a parameter, times the learning rate, lost at each step", 0.01, low=0, high=1
        )
        fused: bool = parameter("several times faster, and not to the last bit PyTorch's default", False)

    config: Config
    states = 2

    def start(self, sizes: Sequence[int]) -> None:
        """Zero means, no step made."""
        import torch

        self.tensors["exp_avg"] = [torch.zeros(size, dtype=torch.float32) for size in sizes]
        self.tensors["exp_avg_sq"] = [torch.zeros(size, dtype=torch.float32) for size in sizes]
        self.tensors["step"] = [torch.zeros((), dtype=torch.float32) for _ in sizes]

    def update(self, parameters: "list[Tensor]", gradients: "list[Tensor]", state: State, learning_rate: float) -> None:
        """Make one step in place."""
        from torch.optim.adamw import adamw

        tensors = cast("dict[str, list[Tensor]]", state)
        adamw(
            parameters,
            gradients,
            tensors["exp_avg"],
            tensors["exp_avg_sq"],
            [],
            tensors["step"],
            foreach=False,
            fused=self.config.fused,
            amsgrad=False,
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            lr=learning_rate,
            weight_decay=self.config.weight_decay,
            eps=self.config.epsilon,
            maximize=False,
        )
