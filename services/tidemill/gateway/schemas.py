"""JSON schemas of protobuf messages, with the comments of the protos as descriptions."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from itertools import combinations
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor

from tidemill.api.artifacts.v1 import artifacts_pb2
from tidemill.api.registry.v1 import registry_pb2
from tidemill.api.tensors.v1 import tensors_pb2
from tidemill.api.training.v1 import training_pb2

Schema = dict[str, Any]
Described: TypeAlias = Any
"""A descriptor of a message or an enum, of whichever implementation protobuf runs on."""
PREFIX = "#/components/schemas/"
_FILES: tuple[FileDescriptor, ...] = (
    registry_pb2.DESCRIPTOR,
    artifacts_pb2.DESCRIPTOR,
    training_pb2.DESCRIPTOR,
    tensors_pb2.DESCRIPTOR,
)
_WELL_KNOWN: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?\d+(\.\d+)?s$", "examples": ["10s"]},
    "google.protobuf.FieldMask": {"type": "string", "description": "Field names, joined by commas."},
    "google.protobuf.Struct": {"type": "object", "additionalProperties": True},
    "google.protobuf.Empty": {"type": "object"},
}
_FLOAT: Schema = {
    "oneOf": [{"type": "number"}, {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}],
}
_SCALARS: Mapping[int, Schema] = {
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_UINT32: {"type": "integer", "format": "uint32"},
    FieldDescriptor.TYPE_INT64: {"type": ["string", "integer"], "format": "int64"},
    FieldDescriptor.TYPE_UINT64: {"type": ["string", "integer"], "format": "uint64"},
    FieldDescriptor.TYPE_FLOAT: {**_FLOAT, "format": "float"},
    FieldDescriptor.TYPE_DOUBLE: {**_FLOAT, "format": "double"},
}


@cache
def comments() -> Mapping[str, str]:
    """Full name of everything in our protos -> its comment."""
    found: dict[str, str] = json.loads(resources.files("tidemill.api").joinpath("comments.json").read_text())
    return found


def comment(descriptor: Any) -> str:
    """The comment of a descriptor."""
    return comments()[descriptor.full_name]


def reference(descriptor: Described) -> Schema:
    """A reference to the schema of a message or an enum."""
    return {"$ref": PREFIX + name(descriptor)}


def name(descriptor: Described) -> str:
    """The name of a schema: that of the message, after that of the message it stands in."""
    outer = descriptor.containing_type
    return f"{name(outer) if outer is not None else ''}{descriptor.name}"


def of_field(field: Any) -> Schema:
    """The schema of a field, with its comment."""
    described: Schema = {"description": comment(field)}
    if "Output only." in described["description"]:
        described["readOnly"] = True
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        values = _element(entry.fields_by_name["value"])
        return {"type": "object", "additionalProperties": values, **described}
    if field.is_repeated:
        return {"type": "array", "items": _element(field), **described}
    return {**_element(field), **described}


def _element(field: Any) -> Schema:
    if field.message_type is not None:
        known = _WELL_KNOWN.get(field.message_type.full_name)
        return dict(known) if known is not None else reference(field.message_type)
    if field.enum_type is not None:
        return reference(field.enum_type)
    return dict(_SCALARS[field.type])


def _of_message(descriptor: Described) -> Schema:
    made: Schema = {
        "type": "object",
        "description": comment(descriptor),
        "properties": {field.name: of_field(field) for field in descriptor.fields},
    }
    pairs = [pair for one in descriptor.oneofs for pair in combinations([field.name for field in one.fields], 2)]
    if pairs:
        made["allOf"] = [{"not": {"required": list(pair)}} for pair in pairs]
    return made


def _of_enum(descriptor: Described) -> Schema:
    names = [value.name for value in descriptor.values]
    lines = [comment(descriptor), *(f"- `{name}`: {comments()[f'{descriptor.full_name}.{name}']}" for name in names)]
    return {"type": "string", "description": "\n".join(lines), "enum": names}


@cache
def known() -> Mapping[str, Described]:
    """Every message and enum of our protos by the name of its schema."""
    found: dict[str, Described] = {}
    for file in _FILES:
        for descriptor in (*file.enum_types_by_name.values(), *file.message_types_by_name.values()):
            for item in _nested(descriptor):
                assert found.setdefault(name(item), item) is item, f"two messages are called {name(item)}"
    return found


def _nested(descriptor: Described) -> Iterator[Described]:
    yield descriptor
    if isinstance(descriptor, Descriptor):
        for inner in (*descriptor.nested_types, *descriptor.enum_types):
            yield from _nested(inner)


def components(document: Any, others: Mapping[str, Schema]) -> dict[str, Schema]:
    """The schemas that `document` refers to, directly or not: of protobuf messages, or of `others` by name."""
    found: dict[str, Schema] = {}
    waiting = list(_references(document))
    while waiting:
        wanted = waiting.pop()
        if wanted in found:
            continue
        if wanted in others:
            found[wanted] = others[wanted]
        else:
            descriptor = known()[wanted]
            found[wanted] = _of_message(descriptor) if isinstance(descriptor, Descriptor) else _of_enum(descriptor)
        waiting += _references(found[wanted])
    return dict(sorted(found.items()))


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        target = value.get("$ref")
        if isinstance(target, str):
            yield target.removeprefix(PREFIX)
        for item in value.values():
            yield from _references(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _references(item)
