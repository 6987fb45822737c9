"""Adam."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tidemill.config import parameter
from tidemill.parameters.optimizers.base import Optimizer

if TYPE_CHECKING:
    from torch import Tensor


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1), as `torch.optim.Adam`."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Hyperparameters of `Adam`."""

        learning_rate: float = parameter("size of a step", 0.001, low=0, high=1e6)
        beta1: float = parameter("part of the mean gradient that is kept at each step", 0.9, low=0, high=0.999999)
        beta2: float = parameter("part of the mean squared gradient that is kept", 0.999, low=0, high=0.999999)
        epsilon: float = parameter("added to the denominator", 1e-8, low=1e-20, high=1)
        weight_decay: float = parameter(
            "L2 penalty: multiple of the parameters added to the gradient", 0.0, low=0, high=1
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

    def update(self, parameters: "list[Tensor]", gradients: "list[Tensor]") -> None:
        """Make one step in place."""
        from torch.optim.adam import adam

        tensors = cast("dict[str, list[Tensor]]", self.tensors)
        adam(
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
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            eps=self.config.epsilon,
            maximize=False,
        )
