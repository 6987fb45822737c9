"""What a model is: hyperparameters, the samples it can take, and the network built from them.

Importing a model does not import torch: names and hyperparameters are checked in processes that have no use for it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tidemill.errors import Invalid

if TYPE_CHECKING:
    import torch

FLOAT = "float32"
TOKENS = "int64"


class Model(ABC):
    """A classifier. The first sentence of a subclass's docstring is its description in the catalogue."""

    Config: ClassVar[type[Any]]
    """Hyperparameters: a frozen keyword-only dataclass, its fields made by `tidemill.config.parameter`."""

    dtype: ClassVar[str] = FLOAT
    """Element type of the network's input: `float32` for numbers of any type, `int64` for tokens."""

    @classmethod
    @abstractmethod
    def check(cls, config: Any, sample_shape: Sequence[int], dtype: str, classes: int) -> None:
        """Refuse samples that this model cannot take.

        Args:
            config: a `Config`.
            sample_shape: dimensions of one sample, without the batch.
            dtype: numpy name of the samples' element type, as they are stored.
            classes: number of classes, from 2.

        Raises:
            Invalid: with reason UNFIT_SAMPLES and what would fit.
        """

    @classmethod
    @abstractmethod
    def build(cls, config: Any, sample_shape: Sequence[int], classes: int) -> "torch.nn.Module":
        """The untrained network: [N, *sample_shape] of `dtype` -> logits [N, classes].

        Inputs are standardized already. Everything that training changes is a floating-point parameter: the network
        has no buffers, because parameters alone travel between workers.
        """


def unfit(model: str, problem: str) -> Invalid:
    """An `Invalid` about samples that `model` cannot take."""
    return Invalid(f"model {model}: {problem}", reason="UNFIT_SAMPLES", violations={"model": problem})


def is_number(dtype: str) -> bool:
    """Whether the numpy type of this name holds real numbers (booleans count)."""
    return np.dtype(dtype).kind in "biuf"


def shown(shape: Sequence[int]) -> str:
    """A shape for people: `[8, 8]`."""
    return str(list(shape))
