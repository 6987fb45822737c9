"""The optimizers and schedules there are: listed, checked and made by name, and put together as rules."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tidemill import config, plugins, schedules
from tidemill.config import parameter
from tidemill.parameters import optimizers
from tidemill.parameters.optimizers.base import Layerwise, Optimizer, check_sparse
from tidemill.parameters.rule import Rule
from tidemill.parameters.segments import Segments
from tidemill.schedules.base import Schedule
from tidemill.tensors.blocks import Block


@dataclass(frozen=True, slots=True)
class Choice:
    """An optimizer or a schedule by name, with its parameters."""

    name: str
    parameters: Mapping[str, Any]


CONSTANT = Choice("constant", {})
"""The schedule when none is chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a step does beside the optimizer's."""

    clip_norm: float = parameter("largest norm of the whole gradient; 0 = any", 0.0, low=0, high=1e30)
    l1: float = parameter("weight of the parameters' magnitudes in the loss; 0 = none", 0.0, low=0, high=1e6)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleChoice(Extras):
    """What a step is made of; `check_rule` fills in the parameters that are not given."""

    optimizer: Choice
    schedule: Choice = CONSTANT


@dataclass(frozen=True, slots=True)
class Description:
    """A plug-in that can be chosen; a parameter is (name, type, default, meaning)."""

    name: str
    text: str
    parameters: Sequence[tuple[str, str, Any, str]]


def describe() -> list[Description]:
    """All optimizers in order of name."""
    return _describe(optimizers, Optimizer)


def describe_schedules() -> list[Description]:
    """All schedules in order of name."""
    return _describe(schedules, Schedule)


def check(name: str, parameters: Mapping[str, Any]) -> Choice:
    """The optimizer `name` with defaults for all hyperparameters that are not given.

    Raises:
        Invalid: there is no such optimizer, or a hyperparameter is unknown, of the wrong type or out of range.
    """
    kind = plugins.load(optimizers, name, Optimizer)
    filled = config.from_mapping(kind.Config, parameters, "optimizer.parameters")
    return Choice(name, dataclasses.asdict(filled))


def check_schedule(name: str, parameters: Mapping[str, Any]) -> Choice:
    """The schedule `name` with defaults for all parameters that are not given.

    Raises:
        Invalid: there is no such schedule, or a parameter is unknown, of the wrong type or out of range.
    """
    kind = plugins.load(schedules, name, Schedule)
    filled = config.from_mapping(kind.Config, parameters, "schedule.parameters")
    return Choice(name, dataclasses.asdict(filled))


def check_rule(asked: RuleChoice, *, sparse: bool = False) -> RuleChoice:
    """The same with defaults for all parameters that are not given.

    Args:
        asked: what somebody wants.
        sparse: whether it must make steps for some rows of tables alone.

    Raises:
        Invalid: there is no such optimizer or schedule, or a parameter is unknown, of the wrong type or out of range;
            NO_SPARSE, the optimizer cannot make steps for rows.
    """
    extras = config.from_mapping(Extras, {"clip_norm": asked.clip_norm, "l1": asked.l1}, "rule")
    choice = RuleChoice(
        optimizer=check(asked.optimizer.name, asked.optimizer.parameters),
        clip_norm=extras.clip_norm,
        l1=extras.l1,
        schedule=check_schedule(asked.schedule.name, asked.schedule.parameters),
    )
    if sparse:
        kind = plugins.load(optimizers, choice.optimizer.name, Optimizer)
        check_sparse(kind, kind.Config(**choice.optimizer.parameters))
    return choice


def states(choice: Choice) -> int:
    """Numbers of state that the optimizer keeps for each parameter."""
    kind = plugins.load(optimizers, choice.name, Optimizer)
    return kind.states_of(kind.Config(**choice.parameters))


def is_layerwise(choice: Choice) -> bool:
    """Whether the optimizer needs the norms of whole tensors."""
    return issubclass(plugins.load(optimizers, choice.name, Optimizer), Layerwise)


def make(choice: Choice, sizes: Sequence[int]) -> Optimizer:
    """A new optimizer for blocks of these numbers of elements; PyTorch is imported here."""
    kind = plugins.load(optimizers, choice.name, Optimizer)
    return kind(kind.Config(**choice.parameters), sizes)


def check_rows(choice: Choice) -> None:
    """See that an optimizer leaves rows without gradients as they are. Raises Invalid: NO_SPARSE."""
    kind = plugins.load(optimizers, choice.name, Optimizer)
    check_sparse(kind, kind.Config(**choice.parameters))


def make_rule(choice: RuleChoice, tensors: Sequence[int], blocks: Sequence[Block]) -> Rule:
    """A new rule for one shard; PyTorch is imported here.

    Args:
        choice: as `check_rule` returned it.
        tensors: number of elements of each tensor of the group, in the order of the flat vector.
        blocks: those of the shard, in order of index.
    """
    kind = plugins.load(schedules, choice.schedule.name, Schedule)
    return Rule(
        make(choice.optimizer, [block.elements for block in blocks]),
        kind(kind.Config(**choice.schedule.parameters)),
        Segments(tensors, blocks),
        clip_norm=choice.clip_norm,
        l1=choice.l1,
    )


def _describe(package: ModuleType, base: type[Any]) -> list[Description]:
    found = []
    for name in plugins.names(package):
        kind = plugins.load(package, name, base)
        text = (kind.__doc__ or "").split("\n")[0]
        found.append(Description(name, text, config.describe(kind.Config)))
    return found
