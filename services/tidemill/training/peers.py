"""What the training service needs of its neighbours, in its own terms. Errors are those of `tidemill.errors`."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tidemill.training.diagnosis.sights import ShardSight


@dataclass(frozen=True, slots=True, kw_only=True)
class Hyperparameter:
    """A hyperparameter of a plug-in."""

    name: str
    type: str
    default_json: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A plug-in that a job can name."""

    name: str
    description: str
    parameters: tuple[Hyperparameter, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVersion:
    """A version to be registered."""

    model: str
    """Name of the model."""
    artifact: str
    signature: str
    """Protobuf JSON of the registry's `Signature`."""
    metrics: Mapping[str, float]
    job: str
    dataset_digest: str
    code_revision: str
    traceparent: str
    tags: Mapping[str, str]
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasState:
    """Where an alias points and pointed before; 0 = nowhere."""

    version: int = 0
    previous: int = 0
    etag: str = "*"
    """Makes a move conditional."""


class Shards(Protocol):
    """The parameter servers."""

    async def live(self) -> Sequence[str]:
        """Addresses of the shards that are registered, in order of name."""

    async def check_optimizer(self, address: str, name: str, parameters: Mapping[str, Any]) -> Mapping[str, Any]:
        """All hyperparameters of an optimizer. Raises Invalid."""

    async def optimizers(self, address: str) -> Sequence[Entry]:
        """The optimizers that a shard has."""

    async def check_group(self, group: str, addresses: Sequence[str]) -> None:
        """Return when every shard has the group's part with values. Raises NotFound."""

    async def check_copies(self, group: str, addresses: Sequence[str]) -> None:
        """Return when one copy of every shard's part of a replicated group has values. Raises NotFound."""

    async def look(self, group: str, address: str) -> ShardSight:
        """One shard's part of a group, as it is now; also of a shard that does not answer, within seconds."""

    async def delete_group(self, group: str, addresses: Sequence[str]) -> None:
        """Delete a group; one that is not there is no error."""


class Artifacts(Protocol):
    """The artifact store."""

    @property
    def address(self) -> str:
        """Where workers find it."""

    async def kind(self, digest: str) -> str:
        """Kind of an artifact. Raises NotFound."""

    async def refer(self, digest: str, reference: str) -> None:
        """Record that `reference` needs an artifact. Raises NotFound."""

    async def release(self, digest: str, reference: str, *, delete: bool) -> None:
        """Take the record back, and `delete` the artifact unless somebody else needs it; it may be gone already."""

    async def upload(self, kind: str, files: Mapping[str, Path], labels: Mapping[str, str], reference: str) -> str:
        """Store files as an artifact that `reference` needs; its digest."""

    def lines(self, digest: str, name: str) -> AsyncIterator[bytes]:
        """The lines of one file of an artifact, with their ends."""


class ModelRegistry(Protocol):
    """The registry of models."""

    async def ensure_model(self, model: str) -> None:
        """Create a model when it is missing."""

    async def create_version(self, version: NewVersion) -> int:
        """Register a version, once for each `request_id`; its number."""

    async def alias(self, model: str, alias: str) -> AliasState:
        """Where an alias points."""

    async def move_alias(self, model: str, alias: str, version: int, etag: str) -> None:
        """Point an alias at a version. Raises Stale when it has moved since `etag`."""
