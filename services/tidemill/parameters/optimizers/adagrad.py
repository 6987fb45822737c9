"""Adagrad."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from tidemill.config import parameter
from tidemill.parameters.optimizers.base import Optimizer, State, undecayed

if TYPE_CHECKING:
    from torch import Tensor


class Adagrad(Optimizer):
    """Adagrad (Duchi, Hazan and Singer, JMLR 2011, the diagonal form), as `torch.optim.Adagrad`."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Hyperparameters of `Adagrad`."""

        learning_rate: float = parameter("size of the first steps", 0.01, low=0, high=1e6)
        learning_rate_decay: float = parameter("how fast the learning rate falls with the steps", 0.0, low=0, high=1e6)
        initial_accumulator: float = parameter("sum of squared gradients to begin with", 0.0, low=0, high=1e6)
        epsilon: float = parameter("added to the denominator", 1e-10, low=1e-20, high=1)
        weight_decay: float = parameter(
            "L2 penalty: multiple of the parameters added to the gradient", 0.0, low=0, high=1
        )
        fused: bool = parameter("three times as fast, and not to the last bit PyTorch's default", False)

    config: Config
    states = 1

    @classmethod
    def dense_only(cls, config: Any) -> str:
        """It makes steps for rows, without weight decay."""
        return undecayed(config)

    def start(self, sizes: Sequence[int]) -> None:
        """The given sums, no step made."""
        import torch

        begin = self.config.initial_accumulator
        self.tensors["sum"] = [torch.full((size,), begin, dtype=torch.float32) for size in sizes]
        self.tensors["step"] = [torch.zeros((), dtype=torch.float32) for _ in sizes]

    def update(self, parameters: "list[Tensor]", gradients: "list[Tensor]", state: State, learning_rate: float) -> None:
        """Make one step in place."""
        from torch.optim.adagrad import adagrad

        tensors = cast("dict[str, list[Tensor]]", state)
        adagrad(
            parameters,
            gradients,
            tensors["sum"],
            tensors["step"],
            foreach=False,
            fused=self.config.fused,
            lr=learning_rate,
            lr_decay=self.config.learning_rate_decay,
            weight_decay=self.config.weight_decay,
            eps=self.config.epsilon,
            maximize=False,
        )
