"""What the registry keeps: models, versions, aliases, events and instances.

Times are microseconds since the epoch. `revision` is that of the event which last wrote the resource: its etag.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias

from tidemill.tensors.dtypes import DataType


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A name under which versions are kept."""

    model: str
    description: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    latest_version: int = 0
    revision: int = 0
    create_time: int = 0
    update_time: int = 0

    @property
    def name(self) -> str:
        """The resource name."""
        return f"models/{self.model}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A tensor without its values; -1 in `shape` marks a free dimension."""

    name: str
    dtype: DataType
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """What a model takes and gives; `labels` are its classes in order of index."""

    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Where a version comes from."""

    job: str = ""
    dataset_digests: tuple[str, ...] = ()
    code_revision: str = ""
    traceparent: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What the creator of a version says about it."""

    format: str
    artifact: str
    signature: Signature | None = None
    lineage: Lineage | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One version of a model; only `tags` and `description` of its draft ever change."""

    model: str
    version: int
    draft: Draft
    aliases: tuple[str, ...] = ()
    revision: int = 0
    create_time: int = 0
    update_time: int = 0

    @property
    def name(self) -> str:
        """The resource name."""
        return f"models/{self.model}/versions/{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alias:
    """A moving name for one version; `previous_version` is where it pointed before, 0 = nowhere."""

    model: str
    alias: str
    version: int
    previous_version: int = 0
    revision: int = 0
    update_time: int = 0

    @property
    def name(self) -> str:
        """The resource name."""
        return f"models/{self.model}/aliases/{self.alias}"


Resource: TypeAlias = Model | ModelVersion | Alias


class EventType(Enum):
    """What a change did; the numbers are those of the API."""

    CREATED = 1
    UPDATED = 2
    DELETED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One change: the resource after it, or before it when it was deleted."""

    revision: int
    time: int
    type: EventType
    resource: Resource


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """New values of a resource's mutable fields; None leaves one as it is."""

    description: str | None = None
    tags: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A running instance of a service; `ttl` is in seconds."""

    service: str
    instance_id: str
    address: str
    labels: Mapping[str, str] = field(default_factory=dict)
    ttl: float
    create_time: int = 0
    nonce: str = ""

    @property
    def identifier(self) -> str:
        """The part of the resource name after `instances/`."""
        return f"{self.service}.{self.instance_id}"

    @property
    def name(self) -> str:
        """The resource name."""
        return f"instances/{self.identifier}"
