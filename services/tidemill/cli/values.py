"""Values given on the command line as NAME=VALUE."""

import json
from collections.abc import Iterable
from typing import Any

from tidemill.errors import Invalid


def assignments(given: Iterable[str], flag: str) -> dict[str, Any]:
    """`["rate=0.1", "hidden=[64,32]", "kind=relu"]` as a mapping; values are JSON, or else text.

    Raises:
        Invalid: one has no `=`.
    """
    values: dict[str, Any] = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise Invalid(f"{flag}: {item!r} is not NAME=VALUE")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def texts(given: Iterable[str], flag: str) -> dict[str, str]:
    """`["a=1"]` as a mapping of texts.

    Raises:
        Invalid: one has no `=`.
    """
    values = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise Invalid(f"{flag}: {item!r} is not NAME=VALUE")
        values[name] = text
    return values
