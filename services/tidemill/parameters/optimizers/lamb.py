"""LAMB."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from tidemill.config import parameter
from tidemill.parameters.optimizers.base import Layerwise, State

if TYPE_CHECKING:
    from torch import Tensor


class Lamb(Layerwise):
    """LAMB, Adam with a trust ratio for each tensor (You et al. 2020, algorithm 2, phi the identity)."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Hyperparameters of `Lamb`."""

        learning_rate: float = parameter("size of a step, as part of a tensor's norm", 0.001, low=0, high=1e6)
        beta1: float = parameter("part of the mean gradient that is kept at each step", 0.9, low=0, high=0.999999)
        beta2: float = parameter("part of the mean squared gradient that is kept", 0.999, low=0, high=0.999999)
        epsilon: float = parameter("added to the denominator", 1e-6, low=1e-20, high=1)
        weight_decay: float = parameter("multiple of the parameters added to the direction", 0.01, low=0, high=1)

    config: Config
    states = 2

    def start(self, sizes: Sequence[int]) -> None:
        """Zero means, no step made."""
        import torch

        self.tensors["exp_avg"] = [torch.zeros(size, dtype=torch.float32) for size in sizes]
        self.tensors["exp_avg_sq"] = [torch.zeros(size, dtype=torch.float32) for size in sizes]
        self.tensors["step"] = [torch.zeros((), dtype=torch.float32) for _ in sizes]

    def direct(self, parameters: "list[Tensor]", gradients: "list[Tensor]", state: State) -> None:
        """Overwrite each gradient with Adam's step of unit size, plus the weight decay."""
        config = self.config
        tensors = cast("dict[str, list[Tensor]]", state)
        for at, (values, gradient) in enumerate(zip(parameters, gradients, strict=True)):
            mean, square, made = tensors["exp_avg"][at], tensors["exp_avg_sq"][at], tensors["step"][at]
            made += 1
            step = made.item()
            mean.lerp_(gradient, 1 - config.beta1)
            square.mul_(config.beta2).addcmul_(gradient, gradient, value=1 - config.beta2)
            denominator = square.div(1 - config.beta2**step).sqrt_().add_(config.epsilon)
            gradient.copy_(mean).div_(1 - config.beta1**step).div_(denominator)
            if config.weight_decay:
                gradient.add_(values, alpha=config.weight_decay)

    def scale(self, parameters: float, direction: float) -> float:
        """The trust ratio; 1 when a norm is 0."""
        return parameters / direction if parameters > 0 and direction > 0 else 1.0
