"""What a job can be made of: plug-ins by name, with their descriptions and hyperparameters."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tidemill import codecs, config, plugins, schedules
from tidemill.codecs.base import Codec
from tidemill.compression import choice
from tidemill.errors import TidemillError
from tidemill.schedules.base import Schedule
from tidemill.training import models, strategies
from tidemill.training.datasets import builtin
from tidemill.training.models.base import Model
from tidemill.training.patience import is_passing
from tidemill.training.peers import Entry, Hyperparameter, Shards
from tidemill.training.strategies.base import Strategy

AUTO = Entry(
    name=choice.AUTO,
    description=f"Measures in the first steps, chooses the fastest of {', '.join(choice.DEFAULT)}, and says why.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """What a job can name."""

    models: Sequence[Entry]
    datasets: Sequence[Entry]
    optimizers: Sequence[Entry]
    """Empty while no parameter server can be asked."""
    strategies: Sequence[Entry]
    schedules: Sequence[Entry]
    codecs: Sequence[Entry]


async def catalogue(shards: Shards) -> Catalogue:
    """The plug-ins of this service, and the optimizers of the parameter servers."""
    return Catalogue(
        models=_entries(models, Model),
        datasets=[Entry(name=name, description=found.text) for name, found in sorted(builtin.CATALOGUE.items())],
        optimizers=await _optimizers(shards),
        strategies=_entries(strategies, Strategy),
        schedules=_entries(schedules, Schedule),
        codecs=[*_entries(codecs, Codec), AUTO],
    )


async def _optimizers(shards: Shards) -> Sequence[Entry]:
    try:
        for address in await shards.live():
            try:
                return await shards.optimizers(address)
            except TidemillError as error:
                if not is_passing(error):
                    raise
    except TidemillError as error:
        if not is_passing(error):
            raise
    return ()


def _entries(package: ModuleType, base: type[Any]) -> list[Entry]:
    return [_entry(name, plugins.load(package, name, base)) for name in plugins.names(package)]


def _entry(name: str, kind: type[Any]) -> Entry:
    described = config.describe(kind.Config) if hasattr(kind, "Config") else []
    return Entry(
        name=name,
        description=(kind.__doc__ or "").split("\n\n")[0].replace("\n    ", " ").strip(),
        parameters=tuple(
            Hyperparameter(name=field, type=type, default_json=json.dumps(default), description=text)
            for field, type, default, text in described
        ),
    )
