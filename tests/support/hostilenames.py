"""Names that no server should take, and every text of every request, as the descriptors know them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor, ServiceDescriptor

from tidemill.api.artifacts.v1 import artifacts_pb2
from tidemill.api.compat.inference import service_pb2
from tidemill.api.parameters.v1 import parameters_pb2
from tidemill.api.registry.v1 import registry_pb2
from tidemill.api.training.v1 import training_pb2

MODULES: dict[Any, str] = {
    registry_pb2: "registry",
    artifacts_pb2: "artifacts",
    training_pb2: "training",
    parameters_pb2: "parameters",
    service_pb2: "inference",
}
"""Descriptions of services, and the server that has them."""

IN_PLACE = ("", "..", "../x", "/etc/passwd", "a\0b", "%2e%2e", "..\\x", "x" * 300, "．．", "x ")
"""Hostile everywhere, also as a part of a longer name."""

HOSTILE = (
    *IN_PLACE,
    *(".", "/", "../../../../etc/passwd", "x/../../y", "a\r\n\r\nb", "%2e%2e%2fx", "C:\\x", "x" * 100_000),
    *("file:///etc/passwd", "http://127.0.0.1/x", "~root/x", "$(id)", ";id", "․․/x", "x\u202ey", "cafe\u0301"),
    *("\u2215etc", "*", "-rf"),
)
"""Hostile as a whole name."""


@dataclass(frozen=True)
class Name:
    """A text that names something.

    Args:
        patterns: where in it what a user chose stands, at each `{}`.
        optional: whether it may be empty.
        also: further codes of answers to it.
        why: the reason of these.
    """

    patterns: tuple[str, ...] = ("{}",)
    optional: bool = False
    also: frozenset[grpc.StatusCode] = frozenset()
    why: str = ""

    def values(self) -> Iterator[str]:
        """Hostile values, whole and in their places."""
        seen = set()
        for pattern in ("{}", *self.patterns):
            for hostile in HOSTILE if pattern == "{}" else IN_PLACE:
                value = pattern.replace("{}", hostile)
                if value not in seen and not (self.optional and not value):
                    seen.add(value)
                    yield value


@dataclass(frozen=True)
class Text:
    """A text that names nothing.

    Args:
        why: what it is.
    """

    why: str


@dataclass(frozen=True)
class Place:
    """A text in a request.

    Args:
        service, method: whose request.
        field: its full name.
        path: the names of the fields that lead to it.
    """

    service: ServiceDescriptor
    method: Any
    field: str
    path: tuple[str, ...]

    def put(self, message: Any, value: str) -> None:
        """Set it in a message of the request's type; a list that leads to it gets an entry if it has none."""
        _put(message, self.path, value)


def places() -> Iterator[Place]:
    """Every text in every request."""
    for module in MODULES:
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                for field, path in _texts(method.input_type, (), {method.input_type.full_name}):
                    yield Place(service, method, field, path)


def _texts(kind: Any, path: tuple[str, ...], above: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for field in kind.fields:
        inner = field.message_type
        if inner is not None and inner.full_name not in above:
            yield from _texts(inner, (*path, field.name), above | {inner.full_name})
        elif field.type == FieldDescriptor.TYPE_STRING:
            yield field.full_name, (*path, field.name)


def _put(message: Any, path: tuple[str, ...], value: str) -> None:
    name, *rest = path
    field = message.DESCRIPTOR.fields_by_name[name]
    inner = field.message_type
    if inner is None and field.is_repeated:
        getattr(message, name).append(value)
    elif inner is None:
        setattr(message, name, value)
    elif inner.GetOptions().map_entry:
        _put_entry(getattr(message, name), inner, rest, value)
    elif field.is_repeated:
        entries = getattr(message, name)
        _put(entries[0] if entries else entries.add(), tuple(rest), value)
    else:
        _put(getattr(message, name), tuple(rest), value)


def _put_entry(entries: Any, kind: Any, rest: list[str], value: str) -> None:
    item = kind.fields[1]
    if rest == ["key"] and item.message_type is not None:
        entries[value].SetInParent()
    elif rest == ["key"]:
        entries[value] = "x" if item.type == FieldDescriptor.TYPE_STRING else 1
    elif item.message_type is not None:
        _put(entries["x"], tuple(rest[1:]), value)
    else:
        entries["x"] = value
