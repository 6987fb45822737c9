"""What can happen to a model version that matters to its files."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Appeared:
    """There is a version with this name, `models/{model}/versions/{number}`; `artifact` is the digest of its files."""

    name: str
    artifact: str


@dataclass(frozen=True, slots=True)
class Gone:
    """The versions with these names are gone."""

    names: Iterable[str]
