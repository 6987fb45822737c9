"""The codecs there are: listed, checked and made by name."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill import codecs, config, plugins
from tidemill.codecs.base import Codec


@dataclass(frozen=True, slots=True)
class Description:
    """A codec that can be chosen; a parameter is (name, type, default, meaning)."""

    name: str
    text: str
    parameters: Sequence[tuple[str, str, Any, str]]
    keeps_residual: bool
    carries_parameters: bool


def names() -> list[str]:
    """All codecs in order of name."""
    return plugins.names(codecs)


def describe() -> list[Description]:
    """All codecs in order of name."""
    found = []
    for name in names():
        kind = plugins.load(codecs, name, Codec)
        text = (kind.__doc__ or "").split("\n")[0]
        found.append(
            Description(name, text, config.describe(kind.Config), kind.keeps_residual, kind.carries_parameters)
        )
    return found


def check(name: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of the codec `name`, with defaults for those that are not given.

    Raises:
        Invalid: there is no such codec (reason UNKNOWN_CODEC), or a parameter is unknown, of the wrong type or out of
            range.
    """
    kind = plugins.load(codecs, name, Codec)
    return dataclasses.asdict(config.from_mapping(kind.Config, parameters, "codec.parameters"))


def make(name: str, parameters: Mapping[str, Any] | None = None) -> Codec:
    """The codec `name`.

    Raises:
        Invalid: as `check`.
    """
    kind = plugins.load(codecs, name, Codec)
    return kind(config.from_mapping(kind.Config, parameters or {}, "codec.parameters"))
