"""Values on the command line: converters for `argparse`, whose errors become one line and status 2."""

import json
import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

PICTURES = (".png", ".svg", ".pdf")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """A converter for whole numbers in [low, high]."""
    wanted = f"in [{low}, {high}]" if high is not None else f"{low} or more"

    def convert(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < low or (high is not None and value > high):
            raise ArgumentTypeError(f"must be {wanted}, not {value}")
        return value

    return convert


def number(low: float) -> Callable[[str], float]:
    """A converter for finite numbers of at least `low`."""

    def convert(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise ArgumentTypeError(f"{text!r} is not a number") from None
        if not low <= value < math.inf:
            raise ArgumentTypeError(f"must be {low:g} or more, and finite, not {text}")
        return value

    return convert


def assignment(text: str) -> tuple[str, Any]:
    """`rate=0.1`, `hidden=[64,32]` or `kind=relu` as a pair; the value is JSON, or else text."""
    name, value = label(text)
    try:
        return name, json.loads(value, parse_constant=_no_json)
    except ValueError:
        return name, value


def _no_json(name: str) -> NoReturn:
    raise ValueError(name)


def label(text: str) -> tuple[str, str]:
    """`team=vision` as a pair of texts."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def picture(text: str) -> Path:
    """A file that a picture can be written to."""
    path = Path(text)
    if path.suffix.lower() not in PICTURES:
        raise ArgumentTypeError(f"{text!r} does not end in {', '.join(PICTURES)}")
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"there is no directory {str(path.parent)!r}")
    return path


def address(text: str) -> tuple[str, int]:
    """`10.0.0.1:8001` or `[::1]:8001` as host and port."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not bare or not (port.isascii() and port.isdigit() and 0 < int(port) <= 65535):
        raise ArgumentTypeError(f"{text!r} is not HOST:PORT")
    if (":" in bare) != (host == f"[{bare}]"):
        raise ArgumentTypeError(f"{text!r}: the host is an address of version 6 in brackets, or has no colon")
    return bare, int(port)
