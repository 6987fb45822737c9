"""What an optimizer is: it changes blocks of parameters in place and keeps its own state for each."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from tidemill.errors import Invalid, Unimplemented
from tidemill.parameters.rows import Rows
from tidemill.tensors.blocks import Array

if TYPE_CHECKING:
    from torch import Tensor

State = dict[str, list["Tensor | None"]]
"""Name -> one tensor a block: a vector as long as the block, a single number, or None as long as there is none."""


class Optimizer(ABC):
    """An optimizer over the blocks of one shard. PyTorch is imported when one is made, not before.

    Every update is element-wise: it does not matter where the vector of parameters is cut. (`Layerwise` ones say more.)

    Args:
        config: its hyperparameters, an instance of `Config`.
        sizes: number of elements of each block.
    """

    Config: ClassVar[type[Any]]
    """Its hyperparameters, `learning_rate` among them: a frozen dataclass of fields by `tidemill.config.parameter`."""

    states: ClassVar[int]
    """Number of tensors of state that have as many elements as the parameters, by which a shard admits groups."""

    def __init__(self, config: Any, sizes: Sequence[int]) -> None:
        self.config = config
        self.tensors: State = {}
        """Its state. What `state` shows."""
        self._sizes = tuple(sizes)
        self.start(sizes)
        self._optional = frozenset(name for name, blocks in self.tensors.items() if any(t is None for t in blocks))

    @classmethod
    def states_of(cls, config: Any) -> int:
        """`states` with these hyperparameters, for an optimizer where it depends on them."""
        return cls.states

    @classmethod
    def dense_only(cls, config: Any) -> str:
        """Why it cannot make a step for some rows of a table alone; "" when it can."""
        return "its steps change rows that have no gradient"

    @abstractmethod
    def start(self, sizes: Sequence[int]) -> None:
        """Fill `tensors` with the state before the first step, FP32, for blocks of these sizes."""

    @abstractmethod
    def update(self, parameters: "list[Tensor]", gradients: "list[Tensor]", state: State, learning_rate: float) -> None:
        """Make one step in place; one FP32 vector a block in both. `gradients` may be overwritten."""

    def update_rows(
        self, parameters: "Tensor", gradients: "Tensor", state: "dict[str, Tensor]", learning_rate: float
    ) -> None:
        """Make one step in place for some rows, with the same rows of the state: [n, width] each."""
        self.update([parameters], [gradients], {name: [tensor] for name, tensor in state.items()}, learning_rate)

    def step(
        self, parameters: Sequence[Array], gradients: Sequence[Array | Rows], learning_rate: float | None = None
    ) -> None:
        """Make one step in place.

        Args:
            parameters: the values of each block, writable float32.
            gradients: their gradients, in the same order and of the same sizes, or of touched rows alone: the others
                keep their values and state until they are touched. Undefined afterwards.
            learning_rate: in place of the one that it was made with.

        Raises:
            Invalid: rows are not rows of their block; NO_SPARSE, it cannot make steps for rows.
        """
        rate = self.config.learning_rate if learning_rate is None else learning_rate
        self.check(parameters, gradients)
        whole = {at: gradient for at, gradient in enumerate(gradients) if not isinstance(gradient, Rows)}
        self._step([(at, parameters[at], gradient) for at, gradient in whole.items()], rate)
        for at, gradient in enumerate(gradients):
            if isinstance(gradient, Rows):
                self._step_rows(at, parameters[at], gradient, rate)

    def step_block(
        self, at: int, parameters: Array, gradients: Array | Rows, learning_rate: float | None = None
    ) -> None:
        """Make one step of one block alone, as `step`: the one at this position."""
        rate = self.config.learning_rate if learning_rate is None else learning_rate
        self.check([parameters], [gradients])
        if isinstance(gradients, Rows):
            self._step_rows(at, parameters, gradients, rate)
        else:
            self._step([(at, parameters, gradients)], rate)

    def check(self, parameters: Sequence[Array], gradients: Sequence[Array | Rows]) -> None:
        """See that what is rows among the gradients is such of its block, and that steps for rows can be made.

        Raises:
            Invalid: it is not; NO_SPARSE, they cannot.
        """
        for values, gradient in zip(parameters, gradients, strict=True):
            if isinstance(gradient, Rows):
                check_sparse(type(self), self.config)
                gradient.check(values.size)

    def state(self) -> dict[str, list[Array | None]]:
        """A copy of the state: name -> one array a block, of one element where the block has one number for all."""
        return {name: [_copied(tensor) for tensor in blocks] for name, blocks in self.tensors.items()}

    def restore(self, state: Mapping[str, Sequence[Array | None]]) -> None:
        """Take a copy of what `state` gave for the same blocks, whichever shards they were on.

        Raises:
            Invalid: STATE_MISMATCH, it is not the state of such an optimizer over such blocks; nothing has changed.
        """
        if state.keys() != self.tensors.keys():
            raise _mismatch(f"has {', '.join(sorted(state)) or 'nothing'}, not {', '.join(sorted(self.tensors))}")
        self.tensors = {name: self._taken(name, list(state[name])) for name in self.tensors}

    def _step(self, blocks: Sequence[tuple[int, Array, Array]], learning_rate: float) -> None:
        import torch

        state = {name: [tensors[at] for at, _, _ in blocks] for name, tensors in self.tensors.items()}
        with torch.no_grad():
            self.update(
                [torch.from_numpy(values) for _, values, _ in blocks],
                [torch.from_numpy(gradient) for _, _, gradient in blocks],
                state,
                learning_rate,
            )
        for name, changed in state.items():
            for (at, _, _), tensor in zip(blocks, changed, strict=True):
                self.tensors[name][at] = tensor

    def _step_rows(self, at: int, parameters: Array, rows: Rows, learning_rate: float) -> None:
        import torch

        index = torch.from_numpy(rows.indices)
        tables = {"": torch.from_numpy(parameters).view(-1, rows.width)}
        state = {}
        for name, blocks in self.tensors.items():
            tensor = blocks[at]
            if tensor is None:
                blocks[at] = tensor = torch.zeros(parameters.size)
            if tensor.dim():
                tables[name] = tensor.view(-1, rows.width)
            else:
                state[name] = tensor
        taken = {name: table.index_select(0, index) for name, table in tables.items()}
        values = taken.pop("")
        with torch.no_grad():
            self.update_rows(values, torch.from_numpy(rows.gradients), {**state, **taken}, learning_rate)
        for name, tensor in {"": values, **taken}.items():
            tables[name].index_copy_(0, index, tensor)

    def _taken(self, name: str, arrays: list[Array | None]) -> "list[Tensor | None]":
        import torch

        if name in self._optional and all(array is None for array in arrays) and len(arrays) == len(self._sizes):
            return [None] * len(arrays)
        single = [tensor is not None and not tensor.dim() for tensor in self.tensors[name]]
        wanted = [1 if one else size for one, size in zip(single, self._sizes, strict=True)]
        found = [None if array is None else array.size for array in arrays]
        if found != wanted:
            raise _mismatch(f"{name} must have {wanted[:4]}… elements a block, not {found[:4]}…")
        copies = [torch.from_numpy(np.array(array, np.float32).reshape(-1)) for array in arrays]
        return [copy.reshape(()) if one else copy for one, copy in zip(single, copies, strict=True)]


class Layerwise(Optimizer):
    """An optimizer whose steps need the norms of whole tensors; `tidemill.parameters.rule` makes them.

    Its step is: parameters -= learning rate * `scale`(norm of the parameters, norm of the direction) * direction, with
    both norms taken over the whole tensor, wherever its blocks lie.
    """

    @abstractmethod
    def direct(self, parameters: "list[Tensor]", gradients: "list[Tensor]", state: State) -> None:
        """Overwrite each gradient with the direction of the step; element-wise."""

    @abstractmethod
    def scale(self, parameters: float, direction: float) -> float:
        """Factor of the learning rate of a tensor whose values and whose direction have these norms."""

    def directions(self, parameters: Sequence[Array], gradients: Sequence[Array]) -> None:
        """Overwrite each block's gradients with the direction of the step."""
        import torch

        with torch.no_grad():
            self.direct(
                [torch.from_numpy(values) for values in parameters],
                [torch.from_numpy(gradient) for gradient in gradients],
                self.tensors,
            )

    def update(self, parameters: "list[Tensor]", gradients: "list[Tensor]", state: State, learning_rate: float) -> None:
        """Refuse: blocks alone do not know the norms of tensors."""
        raise Unimplemented("needs the norms of whole tensors: only a rule can make its steps", reason="WHOLE_TENSORS")


def check_sparse(kind: type[Optimizer], config: Any) -> None:
    """See that an optimizer can make steps for some rows of a table alone.

    Raises:
        Invalid: NO_SPARSE, it cannot.
    """
    reason = kind.dense_only(config)
    if reason:
        name = kind.__module__.rsplit(".", 1)[-1]
        raise Invalid(
            f"{name} takes no gradients of rows alone: {reason}",
            reason="NO_SPARSE",
            metadata={"optimizer": name},
            violations={"optimizer": reason},
        )


def decay(config: Any, parameters: "list[Tensor]", learning_rate: float) -> float:
    """Take the decoupled weight decay off the parameters; what remains to be added to the gradient as L2 penalty."""
    penalty: float = config.weight_decay
    if not config.decoupled_weight_decay:
        return penalty
    for values in parameters:
        values.mul_(1 - learning_rate * penalty)
    return 0.0


def undecayed(config: Any) -> str:
    """Why rows without gradients would change; "" when they do not."""
    return "its weight decay changes rows that have no gradient" if config.weight_decay else ""


def limit_threads(count: int) -> None:
    """Let PyTorch use `count` threads in this process for one operation."""
    import torch

    torch.set_num_threads(count)


def _copied(tensor: "Tensor | None") -> Array | None:
    return None if tensor is None else tensor.numpy().reshape(-1).copy()


def _mismatch(problem: str) -> Invalid:
    return Invalid(f"the state {problem}", reason="STATE_MISMATCH", violations={"state": problem})
