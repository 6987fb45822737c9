"""A trace as a tree: service, span and duration, with repeated siblings folded."""

import json
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidemill.errors import NotFound, Unavailable
from tidemill.telemetry.spanfiles import read_spans

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
        raise NotFound(f"no span of trace {trace_id} in {directory}", reason="TRACE_NOT_FOUND")
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
            traces = json.load(response)["data"]
    except urllib.error.HTTPError as error:
        if error.code == 404:
            raise NotFound(f"Jaeger has no trace {trace_id}", reason="TRACE_NOT_FOUND") from error
        raise Unavailable(f"Jaeger at {url} answers {error.code}", reason="JAEGER") from error
    except OSError as error:
        raise Unavailable(f"Jaeger at {url} does not answer: {error}", reason="JAEGER") from error
    spans = [_jaeger(span, trace["processes"]) for trace in traces for span in trace["spans"]]
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


def render(spans: Sequence[Span], *, fold: int = FOLD) -> Iterator[str]:
    """The lines of the tree, oldest first; spans whose parent is not there are roots."""
    known = {span.span_id for span in spans}
    children: dict[str, list[Span]] = defaultdict(list)
    for span in sorted(spans, key=lambda s: s.start):
        children[span.parent_id if span.parent_id in known else ""].append(span)
    services = len({span.service for span in spans})
    length = (max(s.end for s in spans) - min(s.start for s in spans)) / 1e6
    yield f"{len(spans)} spans of {services} services in {length:.0f} ms"
    yield from _branch(children, children[""], "", fold)


def _branch(children: dict[str, list[Span]], siblings: Sequence[Span], indent: str, fold: int) -> Iterator[str]:
    groups = list(_groups(siblings, fold))
    for position, group in enumerate(groups):
        last = position == len(groups) - 1
        span = group[0]
        mark = "  ERROR" if any(s.failed for s in group) else ""
        times = f"{span.milliseconds:9.1f} ms"
        if len(group) > 1:
            total = sum(s.milliseconds for s in group)
            times = f"{total:9.1f} ms in {len(group)} spans"
        label = f"{indent}{'└─ ' if last else '├─ '}{span.service}  {_short(span.name)}"
        yield f"{label:<88} {times}{mark}"
        below = [child for member in group for child in children[member.span_id]]
        yield from _branch(children, below, indent + ("   " if last else "│  "), fold)


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
