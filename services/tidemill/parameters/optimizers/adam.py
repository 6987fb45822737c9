"""Adam."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tidemill.config import parameter
from tidemill.parameters.optimizers.base import Optimizer, State, undecayed

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

    @classmethod
    def dense_only(cls, config: Any) -> str:
        """It makes steps for rows, as `torch.optim.SparseAdam`, without weight decay."""
        return undecayed(config)

    def start(self, sizes: Sequence[int]) -> None:
        """Zero means, no step made."""
        import torch

        self.tensors["exp_avg"] = [torch.zeros(size, dtype=torch.float32) for size in sizes]
        self.tensors["exp_avg_sq"] = [torch.zeros(size, dtype=torch.float32) for size in sizes]
        self.tensors["step"] = [torch.zeros((), dtype=torch.float32) for _ in sizes]

    def update(self, parameters: "list[Tensor]", gradients: "list[Tensor]", state: State, learning_rate: float) -> None:
        """Make one step in place."""
        from torch.optim.adam import adam

        tensors = cast("dict[str, list[Tensor]]", state)
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
            lr=learning_rate,
            weight_decay=self.config.weight_decay,
            eps=self.config.epsilon,
            maximize=False,
        )

    def update_rows(
        self, parameters: "Tensor", gradients: "Tensor", state: "dict[str, Tensor]", learning_rate: float
    ) -> None:
        """Make one step in place: `torch.optim.SparseAdam`, where epsilon is added before the means are corrected."""
        config, mean, square = self.config, state["exp_avg"], state["exp_avg_sq"]
        state["step"] += 1
        step = state["step"].item()
        mean += (gradients - mean).mul_(1 - config.beta1)
        square += gradients.pow(2).sub_(square).mul_(1 - config.beta2)
        size = learning_rate * math.sqrt(1 - config.beta2**step) / (1 - config.beta1**step)
        parameters += (mean / square.sqrt().add_(config.epsilon)).mul_(-size)
