"""Traces become trees, from span files and from Jaeger."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Ask
from tidemill.cli.tracetree import Span, from_files, from_jaeger, render, to_json
from tidemill.errors import NotFound, Unavailable
from tidemill.telemetry.setup import setup

MS = 1_000_000
TRACE = "0123456789abcdef" * 2


def span(
    id: str,
    parent: str = "",
    name: str = "",
    *,
    at: float = 0,
    ms: float = 1,
    service: str = "training",
    failed: bool = False,
) -> Span:
    start = int(at * MS)
    return Span(id, parent, service, name or id, start, start + int(ms * MS), failed)


def tree(spans: list[Span], **options: Any) -> list[str]:
    return [line.rstrip() for line in render(spans, **options)]


def test_children_stand_below_their_parents_in_order_of_time() -> None:
    spans = [
        span("late", "root", at=5, ms=2),
        span("root", ms=10, service="gateway"),
        span("early", "root", at=1, ms=1),
        span("leaf", "early", at=1, ms=0.5, failed=True),
    ]
    assert tree(spans) == [
        "4 spans of 2 services in 10.0 ms",
        "└─ gateway  root           10.0 ms",
        "   ├─ training  early       1.0 ms",
        "   │  └─ training  leaf     0.5 ms  ERROR",
        "   └─ training  late        2.0 ms",
    ]


def test_spans_whose_parent_is_missing_are_roots() -> None:
    lines = tree([span("one"), span("orphan", "gone", at=1)])
    assert [line.split()[2] for line in lines[1:]] == ["one", "orphan"]
    assert lines[1].startswith("├─")
    assert lines[2].startswith("└─")


def test_many_siblings_of_one_name_are_one_line_with_their_sum() -> None:
    spans = [span("root", ms=100)]
    spans += [span(f"p{i}", "root", "push", at=i, ms=2, failed=i == 3) for i in range(4)]
    spans += [span(f"r{i}", f"p{i}", "round", at=i) for i in range(4)]
    spans += [span(f"q{i}", "root", "pull", at=10 + i) for i in range(3)]
    assert [line[: line.index(".")].split() for line in tree(spans)[1:]] == [
        ["└─", "training", "root", "100"],
        ["├─", "training", "push", "×4", "8"],
        ["│", "└─", "training", "round", "×4", "4"],
        ["├─", "training", "pull", "1"],
        ["├─", "training", "pull", "1"],
        ["└─", "training", "pull", "1"],
    ]
    assert tree(spans)[2].endswith("ERROR")
    assert len(tree(spans, fold=len(spans))) == 1 + len(spans)


def test_names_of_rpcs_are_shortened() -> None:
    (_, line) = tree([span("a", name="tidemill.api.registry.v1.RegistryService/GetModel")])
    assert "training  RegistryService/GetModel " in line


def test_a_narrow_terminal_cuts_names_but_neither_counts_nor_times() -> None:
    spans = [span("root", name="x" * 100)] + [span(f"c{i}", "root", "y" * 100, ms=1500) for i in range(4)]
    lines = tree(spans, width=50)
    assert max(map(len, lines)) <= 50
    assert lines[1].endswith("x…     1.0 ms")
    assert lines[2].endswith("y… ×4     6.00 s")
    assert any(len(line) > 100 for line in tree(spans))


def test_deep_traces_are_no_problem() -> None:
    spans = [span(str(i), str(i - 1)) for i in range(3000)]
    assert sum(1 for _ in render(spans, width=80)) == 3001


def test_no_spans_no_lines() -> None:
    assert tree([]) == []


def test_span_files_are_read_back(tmp_path: Path) -> None:
    telemetry = setup("registry", traces=f"file:{tmp_path}")
    with telemetry.tracer.start_as_current_span("outer", attributes={"n": 1}) as outer:
        trace_id = f"{outer.get_span_context().trace_id:032x}"
        with pytest.raises(ValueError, match="x"), telemetry.tracer.start_as_current_span("inner"):
            raise ValueError("x")
    telemetry.shutdown()
    inner, found = from_files(tmp_path, trace_id)
    assert (found.service, found.name, found.attributes, found.failed) == ("registry", "outer", {"n": 1}, False)
    assert (inner.name, inner.parent_id, inner.failed) == ("inner", found.span_id, True)
    assert json.dumps(to_json(inner))
    with pytest.raises(NotFound, match=TRACE):
        from_files(tmp_path, TRACE)
    with pytest.raises(NotFound):
        from_files(tmp_path / "nothing", TRACE)


@contextmanager
def jaeger(status: int, body: bytes) -> Iterator[tuple[str, list[str]]]:
    """A server that answers everything like this; its URL, and the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


REPLY = {
    "data": [
        {
            "traceID": TRACE,
            "spans": [
                {
                    "spanID": "a1",
                    "operationName": "demo",
                    "references": [],
                    "startTime": 1_000_000,
                    "duration": 2500,
                    "tags": [{"key": "n", "type": "int64", "value": 3}],
                    "processID": "p1",
                },
                {
                    "spanID": "b2",
                    "operationName": "worker.run",
                    "references": [
                        {"refType": "FOLLOWS_FROM", "traceID": TRACE, "spanID": "zz"},
                        {"refType": "CHILD_OF", "traceID": TRACE, "spanID": "a1"},
                    ],
                    "startTime": 1_000_500,
                    "duration": 1000,
                    "tags": [{"key": "error", "type": "bool", "value": True}],
                    "processID": "p2",
                },
            ],
            "processes": {"p1": {"serviceName": "gateway"}, "p2": {"serviceName": "worker"}},
        }
    ]
}


def test_spans_come_from_jaeger() -> None:
    with jaeger(200, json.dumps(REPLY).encode()) as (url, asked):
        spans = from_jaeger(f"{url}/", TRACE)
    assert asked == [f"/api/traces/{TRACE}"]
    assert tree(spans) == [
        "2 spans of 2 services in 2.5 ms",
        "└─ gateway  demo             2.5 ms",
        "   └─ worker  worker.run     1.0 ms  ERROR",
    ]
    assert spans[0].attributes == {"n": 3}


@pytest.mark.parametrize("body", [{"data": []}, {"data": None}, {"data": [{"spans": [], "processes": {}}]}])
def test_jaeger_without_the_trace(body: Any) -> None:
    with jaeger(200, json.dumps(body).encode()) as (url, _), pytest.raises(NotFound, match=f"has no trace {TRACE}"):
        from_jaeger(url, TRACE)
    with jaeger(404, b"{}") as (url, _), pytest.raises(NotFound, match=f"has no trace {TRACE}"):
        from_jaeger(url, TRACE)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [(500, b"", "status 500"), (200, b"<html>", "not the query API"), (200, b"[]", "not the query API")],
)
def test_what_is_not_jaeger(status: int, body: bytes, said: str) -> None:
    with jaeger(status, body) as (url, _), pytest.raises(Unavailable, match=said):
        from_jaeger(url, TRACE)


def test_jaeger_that_is_not_there() -> None:
    with jaeger(200, b"") as (url, _):
        pass
    with pytest.raises(Unavailable, match=r"does not answer: .*refused"):
        from_jaeger(url, TRACE)


def test_trace_command(ask: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    arguments = ["trace", TRACE.upper(), "--data", str(tmp_path)]
    with jaeger(200, json.dumps(REPLY).encode()) as (url, _):
        monkeypatch.setenv("TIDEMILL_JAEGER_URL", url)
        status, out, _ = ask(*arguments)
        assert (status, out.splitlines()[0]) == (0, f"trace {TRACE}")
        assert "worker.run" in out
        status, out, _ = ask(*arguments, "--json")
        assert [item["span_id"] for item in json.loads(out)] == ["a1", "b2"]
    monkeypatch.setenv("TIDEMILL_JAEGER_URL", "localhost:16686")
    status, out, err = ask(*arguments)
    assert (status, out) == (1, "")
    assert "is not an http URL" in err
    monkeypatch.delenv("TIDEMILL_JAEGER_URL")
    status, _, err = ask(*arguments)
    assert status == 1
    assert f"no span of trace {TRACE}" in err
