"""A trace as a tree: service, span and duration, with repeated siblings folded."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any

from tidemill.cli.output import duration
from tidemill.errors import NotFound, Unavailable
from tidemill.telemetry.spanfiles import read_spans

_TIMES = 18
"""Characters of a line beside its label: a duration, and ERROR."""
FOLD = 3
"""Siblings of one name that are shown one by one; more are folded into one line."""


@dataclass(frozen=True, slots=True)
class Span:
    """One span of a trace; times in nanoseconds since the epoch."""

    span_id: str
    parent_id: str
    service: str
    name: str
    start: int
    end: int
    failed: bool
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def milliseconds(self) -> float:
        """Duration."""
        return (self.end - self.start) / 1e6


def from_files(directory: Path, trace_id: str) -> list[Span]:
    """The spans that the embedded stack kept of a trace.

    Raises:
        NotFound: there are none.
    """
    spans = [
        Span(
            record["span_id"],
            record["parent_id"],
            record["service"],
            record["name"],
            record["start_ns"],
            record["end_ns"],
            record["status"] == "ERROR",
            record["attributes"],
        )
        for record in read_spans(directory, trace_id)
    ]
    if not spans:
        raise NotFound(
            f"no span of trace {trace_id} in {directory} (TIDEMILL_JAEGER_URL makes Jaeger the source)",
            reason="TRACE_NOT_FOUND",
        )
    return spans


def from_jaeger(url: str, trace_id: str) -> list[Span]:
    """The spans that a Jaeger at `url` (its query API) has of a trace.

    Raises:
        NotFound: it has none.
        Unavailable: it does not answer.
    """
    address = f"{url.rstrip('/')}/api/traces/{urllib.parse.quote(trace_id)}"
    try:
        with urllib.request.urlopen(address, timeout=10) as response:
            traces = json.load(response)["data"] or []
        spans = [_jaeger(span, trace["processes"]) for trace in traces for span in trace["spans"]]
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise NotFound(f"Jaeger has no trace {trace_id}", reason="TRACE_NOT_FOUND") from error
        raise Unavailable(f"Jaeger at {url} answers with status {error.code}", reason="JAEGER") from error
    except (OSError, HTTPException) as error:
        problem = getattr(error, "reason", error)
        raise Unavailable(f"Jaeger at {url} does not answer: {problem}", reason="JAEGER") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"what answers at {url} is not the query API of Jaeger", reason="JAEGER") from error
    if not spans:
        raise NotFound(f"Jaeger has no trace {trace_id}", reason="TRACE_NOT_FOUND")
    return spans


def _jaeger(span: dict[str, Any], processes: dict[str, Any]) -> Span:
    tags = {tag["key"]: tag["value"] for tag in span.get("tags", [])}
    parents = [ref["spanID"] for ref in span.get("references", []) if ref["refType"] == "CHILD_OF"]
    start = span["startTime"] * 1000
    return Span(
        span["spanID"],
        parents[0] if parents else "",
        processes[span["processID"]]["serviceName"],
        span["operationName"],
        start,
        start + span["duration"] * 1000,
        tags.get("error") in (True, "true") or tags.get("otel.status_code") == "ERROR",
        tags,
    )


def render(spans: Sequence[Span], *, fold: int = FOLD, width: int | None = None) -> Iterator[str]:
    """The lines of the tree, oldest first; spans whose parent is not there are roots.

    Args:
        spans: of one trace, in any order.
        fold: most siblings of one name that are shown one by one; more are one line, with the sum of their times.
        width: most characters of a line; None = as many as it takes.
    """
    if not spans:
        return
    known = {span.span_id for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda s: s.start):
        children[span.parent_id if span.parent_id in known else ""].append(span)
    services = len({span.service for span in spans})
    length = (max(s.end for s in spans) - min(s.start for s in spans)) / 1e6
    yield f"{len(spans)} spans of {services} services in {duration(length)}"
    rows = list(_rows(children, fold))
    labels = [(label, f" ×{len(group)}" if len(group) > 1 else "") for label, group in rows]
    longest = max(len(label + count) for label, count in labels)
    room = longest if width is None else max(min(longest, width - _TIMES), _TIMES)
    for (label, count), (_, group) in zip(labels, rows, strict=True):
        shown = _cut(label, room - len(count)) + count
        mark = "  ERROR" if any(span.failed for span in group) else ""
        yield f"{shown:<{room}} {duration(sum(span.milliseconds for span in group)):>10}{mark}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _rows(children: dict[str, list[Span]], fold: int) -> Iterator[tuple[str, list[Span]]]:
    """Each line's label, and the spans that it stands for. A stack, not recursion: traces can be deep."""
    stack = [("", list(_groups(children[""], fold))[::-1])]
    while stack:
        indent, groups = stack[-1]
        if not groups:
            stack.pop()
            continue
        group = groups.pop()
        last = not groups
        yield f"{indent}{'└─ ' if last else '├─ '}{group[0].service}  {_short(group[0].name)}", group
        below = [child for member in group for child in children[member.span_id]]
        stack.append((indent + ("   " if last else "│  "), list(_groups(below, fold))[::-1]))


def _groups(siblings: Iterable[Span], fold: int) -> Iterator[list[Span]]:
    by_name: dict[tuple[str, str], list[Span]] = {}
    for span in siblings:
        by_name.setdefault((span.service, span.name), []).append(span)
    for group in by_name.values():
        if len(group) > fold:
            yield group
        else:
            yield from ([span] for span in group)


def _short(name: str) -> str:
    """`tidemill.api.registry.v1.RegistryService/GetModel` is shown as `RegistryService/GetModel`."""
    service, slash, method = name.rpartition("/")
    return f"{service.rpartition('.')[2]}/{method}" if slash and "." in service else name


def to_json(span: Span) -> dict[str, Any]:
    """A span for programs; times in nanoseconds since the epoch."""
    return {
        "span_id": span.span_id,
        "parent_id": span.parent_id,
        "service": span.service,
        "name": span.name,
        "start_ns": span.start,
        "end_ns": span.end,
        "error": span.failed,
        "attributes": span.attributes,
    }
