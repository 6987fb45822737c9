"""Dataclasses as JSON: fields that are not known are ignored, missing ones have their default."""

import base64
import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from tidemill.errors import DataLoss

T = TypeVar("T")


def encode(record: Any, *, leave_out: frozenset[str] = frozenset()) -> bytes:
    """The dataclass `record` as JSON, without the fields that `leave_out` names."""
    values = {name: value for name, value in dataclasses.asdict(record).items() if name not in leave_out}
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False, default=_plain).encode()


def decode(cls: type[T], data: bytes) -> T:
    """The record of class `cls` in `data`.

    Raises:
        DataLoss: reason RECORD_UNREADABLE, when it does not hold one.
    """
    try:
        record: T = _build(cls, json.loads(data))
        return record
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataLoss(f"a stored {cls.__name__} cannot be read", reason="RECORD_UNREADABLE") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not stored")


def _build(cls: Any, values: Mapping[str, Any]) -> Any:
    hints = _hints(cls)
    return cls(**{name: _value(hints[name], value) for name, value in values.items() if name in hints})


@functools.cache
def _hints(cls: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _value(hint: Any, value: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        inner = next(each for each in arguments if each is not types.NoneType)
        return None if value is None else _value(inner, value)
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is not Ellipsis:
            return tuple(_value(inner, each) for inner, each in zip(arguments, value, strict=True))
        return tuple(_value(arguments[0], each) for each in value)
    if isinstance(origin, type) and issubclass(origin, Mapping) and arguments[0] in (int, str):
        return {arguments[0](key): _value(arguments[1], each) for key, each in value.items()}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    if hint is bytes:
        return base64.b64decode(value, validate=True)
    if hint is Path:
        return Path(value)
    return _build(hint, value) if dataclasses.is_dataclass(hint) and isinstance(hint, type) else value
