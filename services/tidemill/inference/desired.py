"""What shall be served: the versions that aliases point at, and the file that remembers them over a restart."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidemill.errors import DataLoss
from tidemill.inference.configuration import Configuration
from tidemill.inference.files import write_atomically
from tidemill.inference.signatures import Signature, TensorSpec
from tidemill.tensors.dtypes import DataType


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One version of a model, as the registry or an operator's repository keeps it.

    Args:
        model, number: which.
        format: of the model file: the name of the runtime.
        artifact: digest of the manifest that lists its files; for versions of an operator's repository, of what their
            files looked like.
        signature: what the registry says that it takes and gives; None when it says nothing.
        traceparent: of the trace that made it; "" when there is none.
        job: that made it, as the registry says; "" for none.
        configuration: how it is run; None for versions of the registry, which bring it with their files or have none.
        directory: where its files lie, for versions of an operator's repository; None = in the artifact.
        overrides: files that stand in for those in the directory, by path.
    """

    model: str
    number: int
    format: str
    artifact: str
    signature: Signature | None = None
    traceparent: str = ""
    job: str = ""
    configuration: Configuration | None = None
    directory: Path | None = None
    overrides: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Desired:
    """What shall be served.

    Args:
        aliases: for each model, its aliases and the number of the version that each points at.
        versions: the versions that shall be served, by model and number; where models have aliases, those that some
            alias points at.
        keeps: whether versions stand in for each other: one that is not wanted any more serves until another one of
            the same model is READY, and a number with other content until that is. In the registry it is aliases that
            say so, and a number with other content has nothing to do with the one before.
        problems: why nothing more can be said of a model, by its name.
    """

    aliases: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    versions: Mapping[tuple[str, int], Version] = field(default_factory=dict)
    keeps: bool = False
    problems: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, aliases: Mapping[str, Mapping[str, int]], versions: Iterable[Version]) -> "Desired":
        """Aliases with the versions that they point at; an alias whose version is not among these is left out."""
        known = {(version.model, version.number): version for version in versions}
        kept = {
            model: {alias: number for alias, number in mine.items() if (model, number) in known}
            for model, mine in aliases.items()
        }
        pointed = {(model, number) for model, mine in kept.items() for number in mine.values()}
        return cls(kept, {key: version for key, version in known.items() if key in pointed})


class SavedDesired:
    """A file that holds the last `Desired`, so that a server can start while the registry is away."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, desired: Desired) -> None:
        """Replace what is saved."""
        versions = [_to_json(version) for version in desired.versions.values()]
        write_atomically(self._path, json.dumps({"aliases": desired.aliases, "versions": versions}).encode())

    def read(self) -> Desired | None:
        """What was saved; None when nothing was.

        Raises:
            DataLoss: the file is not what was written.
        """
        try:
            saved = json.loads(self._path.read_bytes())
            return Desired.of(saved["aliases"], map(_from_json, saved["versions"]))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataLoss(f"{self._path} is damaged", reason="STATE_DAMAGED") from error


def _to_json(version: Version) -> dict[str, Any]:
    signature = None
    if version.signature is not None:
        signature = [
            [[spec.name, spec.datatype.name, spec.shape] for spec in specs]
            for specs in (version.signature.inputs, version.signature.outputs)
        ]
    return {
        "model": version.model,
        "number": version.number,
        "format": version.format,
        "artifact": version.artifact,
        "traceparent": version.traceparent,
        "job": version.job,
        "signature": signature,
    }


def _from_json(record: dict[str, Any]) -> Version:
    signature = None
    if record["signature"] is not None:
        sides = [
            tuple(TensorSpec(name, DataType[kind], tuple(shape)) for name, kind, shape in specs)
            for specs in record["signature"]
        ]
        signature = Signature(*sides)
    return Version(**{**record, "signature": signature})
