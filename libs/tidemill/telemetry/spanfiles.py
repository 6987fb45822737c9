"""Spans as bounded JSON lines in a directory: the trace store of the embedded mode."""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.trace import format_span_id, format_trace_id

from tidemill.telemetry import attributes


class JsonLinesExporter(SpanExporter):
    """Appends each span as one line to `<service>.<pid>.jsonl`.

    A file that reaches half of `limit` bytes is renamed to `.1`, over the one before: a process never keeps more than
    `limit` bytes. Files of processes that ended are bounded too: the oldest of them go when the directory holds more
    than `directory_limit` bytes.
    """

    def __init__(
        self, directory: Path, service: str, *, limit: int = 16 << 20, directory_limit: int = 128 << 20
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = directory / f"{service}.{os.getpid()}.jsonl"
        self._limit = limit
        self._lock = threading.Lock()
        _prune(directory, directory_limit)
        self._file = self._path.open("ab")

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write `spans`."""
        lines = b"".join(json.dumps(_record(span)).encode() + b"\n" for span in spans)
        with self._lock:
            if self._file.closed:
                return SpanExportResult.FAILURE
            self._file.write(lines)
            self._file.flush()
            if self._file.tell() > self._limit // 2:
                self._file.close()
                self._path.replace(self._path.with_suffix(".1.jsonl"))
                self._file = self._path.open("ab")
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file."""
        with self._lock:
            self._file.close()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Everything is written at once: there is nothing to flush."""
        return True


def _prune(directory: Path, limit: int) -> None:
    files = []
    for path in directory.glob("*.jsonl"):
        try:
            status = path.stat()
        except FileNotFoundError:  # another process prunes at the same time
            continue
        files.append((status.st_mtime, status.st_size, path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= limit:
            break
        if _alive(path):
            continue
        path.unlink(missing_ok=True)
        total -= size


def _alive(path: Path) -> bool:
    """Whether the process that writes `<service>.<pid>[.1].jsonl` runs still."""
    pid = path.name.removesuffix(".jsonl").removesuffix(".1").rpartition(".")[2]
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:  # it runs, as somebody else
        return True
    return True


def _record(span: ReadableSpan) -> dict[str, Any]:
    context, parent = span.get_span_context(), span.parent
    assert context is not None
    return {
        "trace_id": format_trace_id(context.trace_id),
        "span_id": format_span_id(context.span_id),
        "parent_id": format_span_id(parent.span_id) if parent else "",
        "service": span.resource.attributes.get(attributes.SERVICE_NAME, ""),
        "name": span.name,
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "status": span.status.status_code.name,
        "message": span.status.description or "",
        "attributes": dict(span.attributes or {}),
        "links": [format_trace_id(link.context.trace_id) for link in span.links],
    }


def read_spans(directory: Path, trace_id: str) -> Iterator[dict[str, Any]]:
    """The spans of one trace that the files in `directory` hold, in no particular order.

    Args:
        directory: where `JsonLinesExporter` wrote.
        trace_id: 32 hexadecimal digits.
    """
    for path in sorted(directory.glob("*.jsonl")):
        try:
            lines = path.read_bytes().splitlines()
        except FileNotFoundError:  # rotated or pruned meanwhile
            continue
        for line in lines:
            if trace_id.encode() not in line:
                continue
            try:
                record = json.loads(line)
            except ValueError:  # the last line of a killed process
                continue
            if record["trace_id"] == trace_id:
                yield record
