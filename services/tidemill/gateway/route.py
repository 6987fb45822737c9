"""Routes: a verb, a path template and a handler, with what the OpenAPI document says of them."""

import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

Handler = Callable[[Request], Awaitable[Response]]
_PART, _DIGITS = r"[^/:\s]+", "[0-9]+"
_PARAMETER = re.compile(r"\{(\w+)(?::(int))?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """One operation.

    Args:
        verb: HTTP method; GET answers HEAD as well.
        path: template; `{name}` stands for one part without `/`, `:` and spaces, `{name:int}` for decimal digits.
        handler: makes the response.
        operation: the OpenAPI operation, without the path parameters, which come from the template.
        timed: whether the time of a request is limited; not so for streams and transfers.
        traced: whether requests have spans; not so for probes, which would only make noise.
    """

    verb: str
    path: str
    handler: Handler
    operation: Mapping[str, Any] = field(repr=False)
    timed: bool = True
    traced: bool = True

    @property
    def template(self) -> str:
        """The path with plain `{name}` parameters."""
        return _PARAMETER.sub(r"{\1}", self.path)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the path parameters."""
        return tuple(match[1] for match in _PARAMETER.finditer(self.path))


class Table:
    """Finds the route of a request.

    Args:
        routes: in order of precedence.
        ignore_case: whether paths are compared without regard to case.
    """

    def __init__(self, routes: Iterable[Route], *, ignore_case: bool = False) -> None:
        self.routes = tuple(routes)
        flags = re.IGNORECASE if ignore_case else 0
        self._patterns = [(re.compile(_pattern(route.path), flags), route) for route in self.routes]

    def find(self, verb: str, path: str) -> tuple[Route, dict[str, str]] | frozenset[str]:
        """The route and its path parameters; without one the verbs that the path does have."""
        wanted = "GET" if verb == "HEAD" else verb
        others: set[str] = set()
        for pattern, route in self._patterns:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            if route.verb == wanted:
                return route, match.groupdict()
            others.add(route.verb)
        return frozenset(others)


def _pattern(path: str) -> str:
    parts, position = [], 0
    for match in _PARAMETER.finditer(path):
        parts.append(re.escape(path[position : match.start()]))
        parts.append(f"(?P<{match[1]}>{_DIGITS if match[2] else _PART})")
        position = match.end()
    return "".join([*parts, re.escape(path[position:])])
