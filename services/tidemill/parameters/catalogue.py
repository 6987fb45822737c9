"""The optimizers there are: listed, checked and made by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill import config, plugins
from tidemill.parameters import optimizers
from tidemill.parameters.optimizers.base import Optimizer


@dataclass(frozen=True, slots=True)
class Choice:
    """An optimizer by name, with all its hyperparameters."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Description:
    """An optimizer that can be chosen; a parameter is (name, type, default, meaning)."""

    name: str
    text: str
    parameters: Sequence[tuple[str, str, Any, str]]


def describe() -> list[Description]:
    """All optimizers in order of name."""
    found = []
    for name in plugins.names(optimizers):
        kind = plugins.load(optimizers, name, Optimizer)
        text = (kind.__doc__ or "").split("\n")[0]
        found.append(Description(name, text, config.describe(kind.Config)))
    return found


def check(name: str, parameters: Mapping[str, Any]) -> Choice:
    """The optimizer `name` with defaults for all hyperparameters that are not given.

    Raises:
        Invalid: there is no such optimizer, or a hyperparameter is unknown, of the wrong type or out of range.
    """
    kind = plugins.load(optimizers, name, Optimizer)
    filled = config.from_mapping(kind.Config, parameters, "optimizer.parameters")
    return Choice(name, dataclasses.asdict(filled))


def states(choice: Choice) -> int:
    """Numbers of state that the optimizer keeps for each parameter."""
    return plugins.load(optimizers, choice.name, Optimizer).states


def make(choice: Choice, sizes: Sequence[int]) -> Optimizer:
    """A new optimizer for blocks of these numbers of elements; PyTorch is imported here."""
    kind = plugins.load(optimizers, choice.name, Optimizer)
    return kind(kind.Config(**choice.parameters), sizes)
