"""Spans in files, log lines, trace headers."""

import json
import logging
import os
import subprocess
from pathlib import Path

import pytest
from opentelemetry import trace

from tidemill.errors import Invalid
from tidemill.telemetry.logs import JsonFormatter, TextFormatter
from tidemill.telemetry.propagation import extract, from_traceparent, inject, traceparent, unsampled
from tidemill.telemetry.setup import setup
from tidemill.telemetry.spanfiles import JsonLinesExporter, read_spans


def test_spans_of_several_processes_make_one_trace(tmp_path: Path) -> None:
    first = setup("first", traces=f"file:{tmp_path}")
    second = setup("second", traces=f"file:{tmp_path}")
    with first.tracer.start_as_current_span("outer") as outer:
        headers = inject()
    with second.tracer.start_as_current_span("inner", context=extract(headers)):
        pass
    trace_id = trace.format_trace_id(outer.get_span_context().trace_id)
    spans = {span["name"]: span for span in read_spans(tmp_path, trace_id)}
    assert spans["inner"]["parent_id"] == spans["outer"]["span_id"]
    assert {span["service"] for span in spans.values()} == {"first", "second"}
    first.shutdown()
    second.shutdown()


def test_span_files_stay_bounded(tmp_path: Path) -> None:
    telemetry = setup("bounded")
    exporter = JsonLinesExporter(tmp_path, "bounded", limit=20_000)
    for number in range(300):
        with telemetry.tracer.start_as_current_span(f"span {number}") as span:
            pass
        exporter.export([span])  # type: ignore[list-item]
    exporter.shutdown()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 21_000
    newest = max(tmp_path.iterdir(), key=lambda path: (path.stat().st_size > 0, path.stat().st_mtime_ns))
    assert json.loads(newest.read_text().splitlines()[-1])["name"] == "span 299"


def test_old_files_go_when_the_directory_is_full(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    old, living = tmp_path / f"old.{ended.pid}.1.jsonl", tmp_path / f"living.{os.getpid()}.jsonl"
    old.write_bytes(b"x" * 5000)
    living.write_bytes(b"x" * 5000)
    JsonLinesExporter(tmp_path, "new", directory_limit=1000).shutdown()
    assert not old.exists()
    assert living.exists(), "what a process writes at this moment is not taken away from it"


def test_nothing_is_recorded_below_an_unsampled_context(tmp_path: Path) -> None:
    telemetry = setup("quiet", traces=f"file:{tmp_path}")
    with telemetry.tracer.start_as_current_span("loud") as loud:
        context = unsampled()
    with telemetry.tracer.start_as_current_span("step", context=context) as step:
        assert not step.is_recording()
        assert traceparent().endswith("-00")
    assert step.get_span_context().trace_id == loud.get_span_context().trace_id
    telemetry.shutdown()


def test_bad_trace_headers_are_ignored() -> None:
    for bad in ("", "x", "00-zz-zz-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"):
        assert not trace.get_current_span(from_traceparent(bad)).get_span_context().is_valid


def test_unknown_trace_target_is_refused() -> None:
    with pytest.raises(Invalid, match="file:<directory>"):
        setup("x", traces="kafka:nowhere")


def test_a_log_message_cannot_forge_a_record() -> None:
    record = logging.makeLogRecord({"msg": 'a\n{"level": "ERROR"}', "levelname": "INFO", "model": "b\nc"})
    for formatter in (JsonFormatter("s"), TextFormatter()):
        assert "\n" not in formatter.format(record)
    assert json.loads(JsonFormatter("s").format(record))["model"] == "b\nc"


def test_log_lines_carry_the_trace() -> None:
    telemetry = setup("logs")
    with telemetry.tracer.start_as_current_span("span") as span:
        line = json.loads(JsonFormatter("s").format(logging.makeLogRecord({"msg": "hello"})))
        text = TextFormatter().format(logging.makeLogRecord({"msg": "größer"}))
    assert line["trace_id"] == trace.format_trace_id(span.get_span_context().trace_id)
    assert f"größer trace={line['trace_id']}" in text
