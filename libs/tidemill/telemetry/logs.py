"""Log records as JSON lines (or text for people) on standard error, each with the ids of its trace."""

import json
import logging
import sys
import time
from typing import Any, TextIO

from opentelemetry import trace

_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """One JSON object a record. Line breaks in values are escaped by JSON, so a name cannot forge a record."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            entry["trace_id"] = trace.format_trace_id(context.trace_id)
            entry["span_id"] = trace.format_span_id(context.span_id)
        entry.update({k: v for k, v in vars(record).items() if k not in _STANDARD})
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


class TextFormatter(logging.Formatter):
    """One line a record for people; control characters of the message are escaped."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line with the id of its trace, followed by a traceback if there is one."""
        parts = [record.getMessage(), *(f"{k}={v}" for k, v in vars(record).items() if k not in _STANDARD)]
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            parts.append(f"trace={trace.format_trace_id(context.trace_id)}")
        text = "".join(c if c.isprintable() else _escaped(c) for c in " ".join(parts))
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        line = f"{when} {record.levelname:<7} {text}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def configure(service: str, level: str = "INFO", style: str = "json", stream: TextIO | None = None) -> None:
    """Send the root logger of this process to `stream` (default: standard error).

    Called once, before grpc starts: reconfiguring logging under a running aio server can deadlock grpc.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(service) if style == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
