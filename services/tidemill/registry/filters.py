"""The conditions of List methods: a small grammar, parsed here and nowhere else.

    filter    = condition *( "AND" condition )
    condition = field operator value
    operator  = "=" | "!=" | "<" | "<=" | ">" | ">="
    value     = text in double quotes, as in JSON | number

Which fields there are, and with which operators, is told by `models` and `versions`.
"""

import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from tidemill import names
from tidemill.errors import Invalid, invalid
from tidemill.registry.models import Model, ModelVersion

T = TypeVar("T")

MAX_LENGTH = 4096
MAX_CONDITIONS = 16

_TOKEN = re.compile(
    r"\s*(?:(?P<text>\"(?:[^\"\\]|\\.)*\")|(?P<operator><=|>=|!=|=|<|>)|(?P<word>[A-Za-z0-9._+-]+))", re.DOTALL
)
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


class Condition(NamedTuple):
    """One condition as written; `value` is a text or a number."""

    field: str
    operator: str
    value: str | float


@dataclass(frozen=True, slots=True)
class Filter(Generic[T]):
    """A parsed filter.

    Args:
        predicates: all must hold.
        prefix: identifiers that can match begin with this.
    """

    predicates: tuple[Callable[[T], bool], ...] = ()
    prefix: str = ""

    def matches(self, item: T) -> bool:
        """Whether every condition holds."""
        return all(predicate(item) for predicate in self.predicates)


def models(text: str) -> Filter[Model]:
    """A filter of models: `tags.KEY = "VALUE"` and `name = "models/NAME"`, where a trailing star stands for any ending.

    Raises:
        Invalid: reason INVALID_FILTER, telling what is wrong and where, as all functions here.
    """
    predicates: list[Callable[[Model], bool]] = []
    prefix = ""
    for condition in parse(text):
        value = _text(condition)
        if condition.field == "name":
            wanted = value.removeprefix("models/").removesuffix("*")
            starred = value.endswith("*")
            if not value.startswith("models/") or not (names.is_name(wanted) or (starred and not wanted)):
                raise _wrong(f"{value[:80]!r} must be models/NAME or models/BEGINNING*")
            predicates.append(_name_predicate(wanted, starred))
            prefix = max(prefix, wanted, key=len)
        elif key := _key(condition.field, "tags"):
            predicates.append(_tag_predicate(key, value))
        else:
            raise _wrong(f"unknown field {condition.field[:64]!r}; known are name and tags.KEY")
    return Filter(tuple(predicates), prefix)


def versions(text: str) -> Filter[ModelVersion]:
    """A filter of versions: `tags.KEY`, `artifact`, `format`, `lineage.job` equal a text, `metrics.KEY` a number."""
    return Filter(tuple(_version_predicate(condition) for condition in parse(text)))


def parse(text: str) -> list[Condition]:
    """The conditions in `text`; none for an empty one."""
    if len(text) > MAX_LENGTH:
        raise _wrong(f"has {len(text)} characters, at most {MAX_LENGTH} are allowed")
    tokens = _tokens(text)
    conditions: list[Condition] = []
    while tokens:
        if conditions:
            kind, word = tokens.pop(0)
            if (kind, word) != ("word", "AND"):
                raise _wrong(f"AND was expected instead of {word[:40]!r}")
        if len(tokens) < 3:
            raise _wrong('a condition was expected, such as tags.stage = "test"')
        (field_kind, field), (operator_kind, sign), (value_kind, value), *tokens = tokens
        if field_kind != "word" or operator_kind != "operator" or value_kind == "operator":
            raise _wrong(f"a condition was expected instead of {f'{field} {sign} {value}'[:80]!r}")
        conditions.append(Condition(field, sign, _unquoted(value) if value_kind == "text" else _number(value)))
        if len(conditions) > MAX_CONDITIONS:
            raise _wrong(f"has more than {MAX_CONDITIONS} conditions")
    return conditions


def _tokens(text: str) -> list[tuple[str, str]]:
    found = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise _wrong(f"cannot be read from {text[position : position + 40].strip()!r} on")
        found.append((str(match.lastgroup), match[str(match.lastgroup)]))
        position = match.end()
    return found


def _unquoted(literal: str) -> str:
    try:
        return str(json.loads(literal))
    except ValueError:
        raise _wrong(f"{literal[:40]} is not a text as in JSON") from None


def _number(literal: str) -> float:
    if not _NUMBER.fullmatch(literal):
        raise _wrong(f"{literal[:40]!r} is neither a number nor a text in double quotes")
    number = float(literal)
    if not math.isfinite(number):
        raise _wrong(f"{literal[:40]!r} is too large")
    return number


def _name_predicate(wanted: str, starred: bool) -> Callable[[Model], bool]:
    return lambda model: model.model.startswith(wanted) if starred else model.model == wanted


def _tag_predicate(key: str, value: str) -> Callable[[Model], bool]:
    return lambda model: model.tags.get(key) == value


def _version_predicate(condition: Condition) -> Callable[[ModelVersion], bool]:
    if key := _key(condition.field, "metrics"):
        if isinstance(condition.value, str):
            raise _wrong(f"{condition.field} is compared with a number")
        compare, number = _COMPARISONS[condition.operator], condition.value
        return lambda version: key in version.draft.metrics and compare(version.draft.metrics[key], number)
    value = _text(condition)
    if key := _key(condition.field, "tags"):
        return lambda version: version.draft.tags.get(key) == value
    match condition.field:
        case "artifact":
            return lambda version: version.draft.artifact == value
        case "format":
            return lambda version: version.draft.format == value
        case "lineage.job":
            return lambda version: version.draft.lineage is not None and version.draft.lineage.job == value
    known = "tags.KEY, metrics.KEY, artifact, format and lineage.job"
    raise _wrong(f"unknown field {condition.field[:64]!r}; known are {known}")


def _key(field: str, group: str) -> str:
    """The key in `field` when it belongs to `group`, else ""."""
    if not field.startswith(f"{group}."):
        return ""
    key = field.removeprefix(f"{group}.")
    if not names.is_name(key):
        raise _wrong(f"{key[:64]!r} is not a valid key of {group}")
    return key


def _text(condition: Condition) -> str:
    if condition.operator != "=" or not isinstance(condition.value, str):
        raise _wrong(f'{condition.field[:64]} can only be asked for with = "TEXT"')
    return condition.value


def _wrong(problem: str) -> Invalid:
    return invalid("filter", problem, reason="INVALID_FILTER")
