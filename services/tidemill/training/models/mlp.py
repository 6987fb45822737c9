"""A multilayer perceptron."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidemill.config import parameter
from tidemill.errors import invalid
from tidemill.training.models.base import Model, is_number, shown, unfit

if TYPE_CHECKING:
    import torch

ACTIVATIONS = {"relu": "ReLU", "gelu": "GELU", "tanh": "Tanh"}


class Mlp(Model):
    """A multilayer perceptron for numbers of any shape, which it flattens."""

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Hyperparameters."""

        hidden: tuple[int, ...] = parameter("sizes of the hidden layers, in order", (128,), low=1, high=65536)
        dropout: float = parameter("part of each hidden layer's outputs dropped in training", 0.0, low=0, high=0.95)
        activation: str = parameter("activation after each hidden layer: relu, gelu or tanh", "relu")

        def __post_init__(self) -> None:
            if self.activation not in ACTIVATIONS:
                raise invalid("activation", f"must be one of {', '.join(ACTIVATIONS)}", reason="UNKNOWN_ACTIVATION")

    @classmethod
    def check(cls, config: Config, sample_shape: Sequence[int], dtype: str, classes: int) -> None:
        """Takes numbers of any shape with at least one element."""
        if not is_number(dtype):
            raise unfit("mlp", f"takes numbers, not {dtype}")
        if not sample_shape or min(sample_shape) < 1:
            raise unfit("mlp", f"takes samples of at least one number, not of shape {shown(sample_shape)}")

    @classmethod
    def build(cls, config: Config, sample_shape: Sequence[int], classes: int) -> "torch.nn.Module":
        """Linear layers with activation and dropout between them."""
        from torch import nn

        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        width = math.prod(sample_shape)
        for index, size in enumerate(config.hidden):
            layers[f"hidden{index}"] = nn.Linear(width, size)
            layers[f"activation{index}"] = getattr(nn, ACTIVATIONS[config.activation])()
            layers[f"dropout{index}"] = nn.Dropout(config.dropout)
            width = size
        layers["output"] = nn.Linear(width, classes)
        return nn.Sequential(layers)
