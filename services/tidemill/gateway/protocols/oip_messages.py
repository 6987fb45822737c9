"""Messages of the Open Inference Protocol as JSON documents, and documents as messages: all but inference itself."""

import base64
import binascii
import math
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Invalid, invalid

MAX_SETTINGS = 256
FILE = "file:"
"""Beginning of the names of parameters whose values are files."""
_LISTS = frozenset({"trace_level"})
"""Trace settings that are lists also with one value."""
_WIDE = 2**64


def document(message: Message, *, whole: bool = False) -> dict[str, Any]:
    """A message as JSON: names as in the proto, enums by name, numbers as numbers, bytes as base64.

    Args:
        message: what is written; fields that are not set are written with their defaults where the proto cannot tell.
        whole: whether messages inside that are not set are written too.
    """
    found: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        written = whole and field.message_type is not None and field.containing_oneof is None
        if field.has_presence and not written and not message.HasField(field.name):
            continue
        found[field.name] = _field(field, getattr(message, field.name), whole)
    return found


def _field(field: Any, value: Any, whole: bool) -> Any:
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        kind = entry.fields_by_name["value"]
        return {_key(key): _value(kind, value[key], whole) for key in sorted(value)}
    if field.is_repeated:
        return [_value(field, item, whole) for item in value]
    return _value(field, value, whole)


def _key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _value(field: Any, value: Any, whole: bool) -> Any:
    if field.message_type is not None:
        return document(value, whole=whole)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return value if known is None else known.name
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")  # protobuf's words for them
    return value


def entries(given: Any, field: str) -> Mapping[str, Any]:
    """A JSON object that is a request; null is an empty one.

    Raises:
        Invalid: it is something else, or has too many members.
    """
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise invalid(field, "must be an object")
    if len(given) > MAX_SETTINGS:
        raise invalid(field, f"must have at most {MAX_SETTINGS} members")
    for name in given:
        text(name, field)
    return given


def text(value: Any, field: str) -> str:
    """A string that UTF-8 can carry. Raises `Invalid` for anything else."""
    if not isinstance(value, str):
        raise invalid(field, "must be a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise invalid(field, "holds a lone surrogate") from error
    return value


def number(value: Any, field: str, limit: int = _WIDE) -> int:
    """A whole number below `limit`; null is 0. Raises `Invalid` for anything else."""
    if value is None:
        return 0
    if type(value) is not int or not 0 <= value < limit:
        raise invalid(field, f"must be a whole number in [0, {limit})")
    return value


def flag(value: Any, field: str) -> bool:
    """A truth value; null is false. Raises `Invalid` for anything else."""
    if value is None:
        return False
    if not isinstance(value, bool):
        raise invalid(field, "must be true or false")
    return value


def fill_repository(target: Any, given: Any) -> None:
    """The `parameters` of a request to load or unload a model; values of `file:` names are base64.

    Raises:
        Invalid: a value is of no type that parameters have.
    """
    for name, value in entries(given, "parameters").items():
        where = f"parameters.{name[:64]}"
        if value is None:
            continue
        if name.startswith(FILE):
            target[name].bytes_param = _bytes(value, where)
        elif isinstance(value, bool):
            target[name].bool_param = value
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            target[name].int64_param = value
        else:
            target[name].string_param = text(value, where)


def _bytes(value: Any, field: str) -> bytes:
    try:
        return base64.b64decode(text(value, field), validate=True)
    except (binascii.Error, ValueError) as error:
        if isinstance(error, Invalid):
            raise
        raise invalid(field, "must be base64") from error


def cuda_handle(value: Any) -> bytes:
    """The bytes of `{"b64": …}`. Raises `Invalid` for anything else."""
    if not isinstance(value, dict) or "b64" not in value:
        raise invalid("raw_handle", 'must be {"b64": …}')
    return _bytes(value["b64"], "raw_handle.b64")


def trace_request(given: Any, model: str) -> pb.TraceSettingRequest:
    """A request to change trace settings; null clears one.

    Raises:
        Invalid: a value is neither text nor a list of texts.
    """
    request = pb.TraceSettingRequest(model_name=model)
    for name, value in entries(given, "settings").items():
        where = name[:64]
        target = request.settings[name]
        if value is None:
            continue
        listed = value if isinstance(value, list) else [value]
        if len(listed) > MAX_SETTINGS:
            raise invalid(where, f"must be at most {MAX_SETTINGS} values")
        target.value.extend(str(item) if type(item) is int else text(item, where) for item in listed)
    return request


def trace_settings(found: pb.TraceSettingResponse) -> dict[str, Any]:
    """Trace settings as JSON: a list for those that are lists, a string for all others."""
    settings: dict[str, Any] = {}
    for name in sorted(found.settings):
        values = list(found.settings[name].value)
        settings[name] = values if name in _LISTS or len(values) != 1 else values[0]
    return settings


def log_request(given: Any) -> pb.LogSettingsRequest:
    """A request to change log settings.

    Raises:
        Invalid: a value is neither a truth value nor a number of 32 bits nor text.
    """
    request = pb.LogSettingsRequest()
    for name, value in entries(given, "settings").items():
        where = name[:64]
        if isinstance(value, bool):
            request.settings[name].bool_param = value
        elif isinstance(value, int):
            request.settings[name].uint32_param = number(value, where, 2**32)
        elif value is not None:
            request.settings[name].string_param = text(value, where)
    return request


def log_settings(found: pb.LogSettingsResponse) -> dict[str, Any]:
    """Log settings as JSON."""
    settings = {}
    for name in sorted(found.settings):
        kind = found.settings[name].WhichOneof("parameter_choice")
        if kind:
            settings[name] = getattr(found.settings[name], kind)
    return settings
