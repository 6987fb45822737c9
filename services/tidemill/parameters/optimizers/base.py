"""What an optimizer is: it changes blocks of parameters in place and keeps its own state for each."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from tidemill.tensors.blocks import Array

if TYPE_CHECKING:
    from torch import Tensor


class Optimizer(ABC):
    """An optimizer over the blocks of one shard. PyTorch is imported when one is made, not before.

    Every update is element-wise: it does not matter where the vector of parameters is cut.

    Args:
        config: its hyperparameters, an instance of `Config`.
        sizes: number of elements of each block.
    """

    Config: ClassVar[type[Any]]
    """Its hyperparameters: a frozen dataclass whose fields are made by `tidemill.config.parameter`."""

    states: ClassVar[int]
    """Number of tensors of state that have as many elements as the parameters, by which a shard admits groups."""

    def __init__(self, config: Any, sizes: Sequence[int]) -> None:
        self.config = config
        self.tensors: dict[str, list[Tensor | None]] = {}
        """Its state: name -> one tensor a block, None as long as there is none. What `state` shows."""
        self.start(sizes)

    @abstractmethod
    def start(self, sizes: Sequence[int]) -> None:
        """Fill `tensors` with the state before the first step, FP32, for blocks of these sizes."""

    @abstractmethod
    def update(self, parameters: "list[Tensor]", gradients: "list[Tensor]") -> None:
        """Make one step in place; one FP32 vector a block in both. `gradients` may be overwritten."""

    def step(self, parameters: Sequence[Array], gradients: Sequence[Array]) -> None:
        """Make one step in place.

        Args:
            parameters: the values of each block, writable float32.
            gradients: their gradients, in the same order and of the same sizes; undefined afterwards.
        """
        import torch

        with torch.no_grad():
            self.update([torch.from_numpy(p) for p in parameters], [torch.from_numpy(g) for g in gradients])

    def state(self) -> dict[str, list[Array | None]]:
        """A copy of the state: name -> one array a block, of one element where the block has one number for all."""
        return {name: [_copied(tensor) for tensor in blocks] for name, blocks in self.tensors.items()}


def _copied(tensor: "Tensor | None") -> Array | None:
    return None if tensor is None else tensor.numpy().reshape(-1).copy()


def limit_threads(count: int) -> None:
    """Let PyTorch use `count` threads in this process for one operation."""
    import torch

    torch.set_num_threads(count)
