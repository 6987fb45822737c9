"""How things are stored: as JSON, which other programs can read in the store.

Fields that this release does not know are ignored and missing ones get their default, so releases that only add fields
read each other's records; any other change counts up `FORMAT`.
"""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Hashable, Mapping
from enum import Enum
from typing import Any, TypeVar

from tidemill.errors import DataLoss, FailedPrecondition, invalid
from tidemill.registry.models import Alias, Event, EventType, Model, ModelVersion, Resource

T = TypeVar("T")

FORMAT = 1
"""Version of the storage format."""
MAX_BYTES = 256 << 10
"""Largest record; the three of the largest change fit into one transaction of the store, which holds 1 MiB."""

KINDS: dict[str, type[Resource]] = {"model": Model, "model_version": ModelVersion, "alias": Alias}
"""Kinds of resources by the name of their field in an event."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Which events there are: `oldest` to `revision`; none when `revision` is 0."""

    format: int = FORMAT
    revision: int = 0
    oldest: int = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """An event as stored; `nonce` tells whose it is, `request` is the key of the request that caused it, or ""."""

    revision: int
    time: int
    type: EventType
    kind: str
    resource: Mapping[str, Any]
    nonce: str = ""
    request: str = ""

    def event(self) -> Event:
        """The event."""
        resource = build(KINDS[self.kind], self.resource)
        return Event(revision=self.revision, time=self.time, type=self.type, resource=resource)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RequestRecord:
    """What a `request_id` did: the fingerprint of its content, and the event that it made."""

    fingerprint: str
    revision: int


def kind_of(resource: Resource) -> str:
    """The name of the resource's kind."""
    return next(name for name, cls in KINDS.items() if isinstance(resource, cls))


def plain(record: Any) -> dict[str, Any]:
    """A dataclass as what JSON knows."""
    return dataclasses.asdict(record)


def encode(record: Any) -> bytes:
    """A dataclass, or a mapping with some, as bytes; equal ones give equal bytes."""
    text = json.dumps(
        record, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain_value
    )
    return text.encode()


def encode_limited(record: Any, field: str, limit: int = MAX_BYTES) -> bytes:
    """`encode`, of what a caller has sent as `field`.

    Raises:
        Invalid: reason TOO_LARGE, when it takes more than `limit` bytes.
    """
    data = encode(record)
    if len(data) > limit:
        raise invalid(field, f"takes {len(data)} bytes, at most {limit} can be kept", reason="TOO_LARGE")
    return data


def decode(cls: type[T], data: bytes) -> T:
    """The record of class `cls` in `data`.

    Raises:
        DataLoss: it does not hold one.
    """
    try:
        return build(cls, json.loads(data))
    except (ValueError, TypeError, KeyError) as error:
        raise DataLoss(f"a stored {cls.__name__} cannot be read", reason="RECORD_UNREADABLE") from error


def decode_head(data: bytes | None) -> Head:
    """The head in `data`; that of an empty store for None.

    Raises:
        FailedPrecondition: reason DATA_VERSION_NEWER, when a newer release wrote the store.
    """
    if data is None:
        return Head()
    head = decode(Head, data)
    if head.format > FORMAT:
        raise FailedPrecondition(
            f"the store has data version {head.format}, this release knows up to {FORMAT}: use a newer one",
            reason="DATA_VERSION_NEWER",
            metadata={"version": str(head.format), "supported": str(FORMAT)},
        )
    return head


def build(cls: type[T], values: Mapping[str, Any]) -> T:
    """A dataclass from plain values. Raises ValueError, TypeError or KeyError when they do not fit."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{cls.__name__} is stored as an object")
    hints = _hints(typing.cast(Hashable, cls))
    return cls(**{name: _value(hints[name], value) for name, value in values.items() if name in hints})


@functools.cache
def _hints(cls: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _value(hint: Any, value: Any) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        inner = next(each for each in typing.get_args(hint) if each is not types.NoneType)
        return None if value is None else _value(inner, value)
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_value(inner, each) for each in value)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type[Any], hint), value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    if hint in (str, int) and not isinstance(value, hint):
        raise TypeError(f"{value!r} is not of type {hint.__name__}")
    return float(value) if hint is float else value


def _plain_value(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(value)
    raise TypeError(f"{type(value).__name__} is not stored")
