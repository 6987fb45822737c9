"""What a model takes and gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from tidemill.tensors.dtypes import DataType

FREE = -1
"""A dimension that may have any size."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Args:
        name: unique among its neighbours.
        datatype: type of its elements.
        shape: dimensions, `FREE` for those of any size; empty for a scalar and where even the rank is open.
    """

    name: str
    datatype: DataType
    shape: tuple[int, ...]

    def accepts(self, shape: Sequence[int]) -> bool:
        """Whether a tensor may have this shape, as far as the model file says."""
        if not self.shape:
            return True
        if len(shape) != len(self.shape):
            return False
        for mine, given in zip(self.shape, shape, strict=True):  # noqa: SIM110 once for each input of each request
            if mine not in (FREE, given):
                return False
        return True


@dataclass(frozen=True)
class Signature:
    """All inputs and outputs, in the model's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @cached_property
    def input(self) -> Mapping[str, TensorSpec]:
        """The inputs by name."""
        return {spec.name: spec for spec in self.inputs}

    @cached_property
    def output(self) -> Mapping[str, TensorSpec]:
        """The outputs by name."""
        return {spec.name: spec for spec in self.outputs}

    @cached_property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""
        return tuple(self.output)


def contradiction(declared: Signature, found: Signature) -> str:
    """How a declared signature contradicts the one found in the file; "" when it does not.

    A dimension that either leaves open contradicts nothing, neither does a shape that either does not tell.
    """
    for kind, mine, other in (
        ("input", declared.input, found.input),
        ("output", declared.output, found.output),
    ):
        if mine.keys() != other.keys():
            return f"{kind}s are {sorted(other)}, but the version declares {sorted(mine)}"
        for name, spec in mine.items():
            if problem := _differ(spec, other[name]):
                return f"{kind} {name!r} {problem}"
    return ""


def _differ(declared: TensorSpec, found: TensorSpec) -> str:
    if declared.datatype is not found.datatype:
        return f"is {found.datatype.name}, but the version declares {declared.datatype.name}"
    if not declared.shape or not found.shape:
        return ""
    fits = len(declared.shape) == len(found.shape) and all(
        FREE in pair or pair[0] == pair[1] for pair in zip(declared.shape, found.shape, strict=True)
    )
    return "" if fits else f"has shape {list(found.shape)}, but the version declares {list(declared.shape)}"
