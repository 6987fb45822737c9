"""Typed settings from environment variables and command-line flags: the only reader of `os.environ`.

A service's settings are one frozen keyword-only dataclass whose fields are made by `setting`. `load` fills it: a flag
`--field-name` wins over the environment variable `TIDEMILL_<PREFIX>_<FIELD>`, which wins over the default. `--help`
lists every setting with its type, default and variable.
"""

import argparse
import dataclasses
import json
import os
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from tidemill.errors import Invalid, invalid

T = TypeVar("T")
_MISSING = dataclasses.MISSING


def setting(help: str, default: Any = _MISSING, *, env: str | None = None, secret: bool = False) -> Any:
    """A field of a settings dataclass.

    Args:
        help: what it does, one sentence, with its unit.
        default: value when neither flag nor variable is given; without one the setting is required.
        env: full name of the environment variable, when it is not `TIDEMILL_<PREFIX>_<FIELD>`.
        secret: never shown, and no flag is offered: command lines are public on a machine.
    """
    metadata = {"help": help, "env": env, "secret": secret}
    if isinstance(default, list | dict | set):
        raise TypeError("defaults must be immutable")
    return dataclasses.field(default=default, metadata=metadata, repr=not secret)


def environ() -> dict[str, str]:
    """A copy of this process's environment."""
    return dict(os.environ)


def set_default(name: str, value: str) -> None:
    """Give a library that reads the environment a setting, unless the operator has given it one."""
    os.environ.setdefault(name, value)


def set_variable(name: str, value: str) -> None:
    """Give code that reads the environment a value that this process alone knows."""
    os.environ[name] = value


def set_environment(environment: Mapping[str, str]) -> None:
    """Put another environment in the place of this process's, which becomes another program without exec."""
    os.environ.clear()
    os.environ.update(environment)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load(
    cls: type[T],
    prefix: str,
    *,
    arguments: Sequence[str] | None = None,
    environment: Mapping[str, str] | None = None,
    program: str | None = None,
) -> T:
    """Settings of class `cls` from `arguments` (default: the command line) and `environment` (default: the process's).

    Prints a message and exits with status 2 when a setting is wrong or missing, and with 0 for `--help`.
    """
    variables = environ() if environment is None else environment
    parser = argparse.ArgumentParser(
        prog=program or f"python -m tidemill.{prefix.lower()}",
        description=(sys.modules[cls.__module__].__doc__ or "").split("\n")[0],
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    for field in fields:
        if field.metadata["secret"]:
            continue
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            default=_MISSING,
            metavar=_type_name(hints[field.name]).upper(),
            help=_help(field, prefix),
        )
    secrets = [f"  {_variable(f, prefix)}  {f.metadata['help']}" for f in fields if f.metadata["secret"]]
    if secrets:
        parser.epilog = "only as environment variables:\n" + "\n".join(secrets)
    given = vars(parser.parse_args(arguments))
    values: dict[str, Any] = {}
    for field in fields:
        source, text = f"--{field.name.replace('_', '-')}", given.get(field.name, _MISSING)
        if text is _MISSING:
            source = _variable(field, prefix)
            text = variables.get(source, _MISSING)
        if text is _MISSING:
            if field.default is _MISSING:
                parser.error(f"{source} is required: {field.metadata['help']}")
            continue
        try:
            values[field.name] = convert(hints[field.name], text)
        except ValueError as problem:
            parser.error(f"{source}: {problem}")
    try:
        return cls(**values)
    except Invalid as problem:
        parser.error(problem.message)


def _variable(field: "dataclasses.Field[Any]", prefix: str) -> str:
    return field.metadata["env"] or f"TIDEMILL_{prefix.upper()}_{field.name.upper()}"


def _help(field: "dataclasses.Field[Any]", prefix: str) -> str:
    default = "required" if field.default is _MISSING else f"default {_show(field.default)}"
    return f"{field.metadata['help']}\n({default}; {_variable(field, prefix)})".replace("%", "%%")


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or "empty"
    return str(value) if value not in ("", None) else "empty"


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return _type_name(next(a for a in typing.get_args(hint) if a is not types.NoneType))
    if typing.get_origin(hint) in (tuple, list):
        return f"{_type_name(typing.get_args(hint)[0])},…"
    return str(getattr(hint, "__name__", hint))


def _bool(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in ("1", "true", "yes", "on"):
        return True
    if lowered in ("0", "false", "no", "off", ""):
        return False
    raise ValueError(f"{text!r} is not true or false")


_CONVERTERS: dict[Any, Callable[[str], Any]] = {str: str, int: int, float: float, bool: _bool}


def convert(hint: Any, text: str) -> Any:
    """`text` as a value of the type `hint`: str, int, float, bool, `X | None` or `tuple[X, ...]` (comma-separated).

    Raises:
        ValueError: it is not one.
    """
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        inner = next(a for a in typing.get_args(hint) if a is not types.NoneType)
        return convert(inner, text) if text else None
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(convert(inner, part.strip()) for part in text.split(",") if part.strip())
    try:
        return _CONVERTERS[hint](text)
    except ValueError as problem:
        raise ValueError(f"{text!r} is not of type {_type_name(hint)}") from problem


def parameter(help: str, default: Any, *, low: float | None = None, high: float | None = None) -> Any:
    """A field of a plug-in's hyperparameters, with its meaning and, for numbers, the range it must lie in."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high})


def from_mapping(cls: type[T], values: Mapping[str, Any], field: str = "parameters") -> T:
    """Hyperparameters of the dataclass `cls` from JSON-like `values`, each checked for type and range.

    A whole number is accepted where a float is wanted, and a float without fraction where an int is (JSON and protobuf
    structs know doubles only).

    Raises:
        Invalid: for an unknown name, a wrong type or a value out of range, with the field path as violation.
    """
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    result: dict[str, Any] = {}
    for name, value in values.items():
        path = f"{field}.{name[:64]}"
        if name not in known:
            raise invalid(path, f"is unknown; known are {', '.join(known) or 'none'}", reason="UNKNOWN_PARAMETER")
        result[name] = _checked(hints[name], value, known[name].metadata, path)
    return cls(**result)


def _checked(hint: Any, value: Any, limits: Mapping[str, Any], path: str) -> Any:
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or len(value) > 64:
            raise invalid(path, "must be a list of at most 64 values")
        inner = typing.get_args(hint)[0]
        return tuple(_checked(inner, item, limits, f"{path}[{i}]") for i, item in enumerate(value))
    if hint is bool or hint is str:
        if not isinstance(value, hint):
            raise invalid(path, f"must be of type {hint.__name__}, not {json.dumps(value, default=str)[:40]}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(path, f"must be a number, not {json.dumps(value, default=str)[:40]}")
    if not abs(value) < 2**63:  # written so that NaN fails too
        raise invalid(path, "must be finite and below 2^63")
    if hint is int and value != int(value):
        raise invalid(path, "must be a whole number")
    low, high = limits.get("low"), limits.get("high")
    if (low is not None and value < low) or (high is not None and value > high):
        raise invalid(path, f"must be in [{low}, {high}], not {value}")
    return hint(value)


def from_texts(cls: type[T], texts: Sequence[str], field: str = "options") -> T:
    """The dataclass `cls` from texts `name=value`, each checked for type and range as `from_mapping` does.

    Raises:
        Invalid: as `from_mapping`, or when a text has another form.
    """
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise invalid(field, f"{text[:64]!r} is not of the form name=value")
        try:
            values[name] = convert(hints[name], value) if name in hints else value
        except ValueError as problem:
            raise invalid(f"{field}.{name[:64]}", str(problem)) from problem
    return from_mapping(cls, values, field)


def describe(cls: type[Any]) -> list[tuple[str, str, Any, str]]:
    """(name, type, default, meaning) of each hyperparameter of the dataclass `cls`."""
    hints = typing.get_type_hints(cls)
    rows = []
    for f in dataclasses.fields(cls):
        hint = hints[f.name]
        name = f"list[{typing.get_args(hint)[0].__name__}]" if typing.get_origin(hint) is tuple else hint.__name__
        rows.append((f.name, name, f.default, str(f.metadata.get("help", ""))))
    return rows
