"""A small convolutional network for images."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tidemill.config import parameter
from tidemill.errors import invalid
from tidemill.training.models.base import Model, is_number, shown, unfit

if TYPE_CHECKING:
    import torch

KERNEL = 3
POOL = 2


class Cnn(Model):
    """A convolutional network for images: 3x3 convolutions, one pooling, one dense layer (LeCun et al. 1998 in shape).

    The defaults are the network that PyTorch's and Keras's MNIST examples train.
    """

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Config:
        """Hyperparameters."""

        channels: tuple[int, ...] = parameter(
            "output channels of the 3x3 convolutions, in order", (32, 64), low=1, high=1024
        )
        dense: int = parameter("size of the dense layer", 128, low=1, high=65536)
        dropout: float = parameter("part of the pooled features dropped in training", 0.25, low=0, high=0.95)
        dense_dropout: float = parameter("part of the dense layer's outputs dropped in training", 0.5, low=0, high=0.95)

        def __post_init__(self) -> None:
            if not 1 <= len(self.channels) <= 8:
                raise invalid("channels", "must name 1 to 8 convolutions")

    @classmethod
    def check(cls, config: Config, sample_shape: Sequence[int], dtype: str, classes: int) -> None:
        """Takes images [H, W] or [C, H, W] that are large enough for the convolutions and the pooling."""
        if not is_number(dtype):
            raise unfit("cnn", f"takes numbers, not {dtype}")
        least = len(config.channels) * (KERNEL - 1) + POOL
        if len(sample_shape) not in (2, 3) or sample_shape[0] < 1 or min(sample_shape[-2:]) < least:
            raise unfit(
                "cnn",
                f"takes images [H, W] or [C, H, W] of at least {least}x{least} pixels, not {shown(sample_shape)}",
            )

    @classmethod
    def build(cls, config: Config, sample_shape: Sequence[int], classes: int) -> "torch.nn.Module":
        """Convolutions without padding, max-pooling, dropout, a dense layer, dropout, the output layer."""
        from torch import nn

        layers: OrderedDict[str, nn.Module] = OrderedDict()
        height, width = sample_shape[-2:]
        channels = 1 if len(sample_shape) == 2 else sample_shape[0]
        layers["image"] = nn.Unflatten(1, (1, height)) if len(sample_shape) == 2 else nn.Identity()
        for index, size in enumerate(config.channels):
            layers[f"convolution{index}"] = nn.Conv2d(channels, size, KERNEL)
            layers[f"activation{index}"] = nn.ReLU()
            channels, height, width = size, height - KERNEL + 1, width - KERNEL + 1
        layers["pool"] = nn.MaxPool2d(POOL)
        layers["dropout"] = nn.Dropout(config.dropout)
        layers["flatten"] = nn.Flatten()
        layers["dense"] = nn.Linear(channels * (height // POOL) * (width // POOL), config.dense)
        layers["dense_activation"] = nn.ReLU()
        layers["dense_dropout"] = nn.Dropout(config.dense_dropout)
        layers["output"] = nn.Linear(config.dense, classes)
        return nn.Sequential(layers)
