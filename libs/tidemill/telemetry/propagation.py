"""Trace context on its way between processes, as W3C headers or stored with a record.

Needs OpenTelemetry's API alone: clients carry traces without the SDK, which takes long to import.
"""

import secrets
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

TRACEPARENT = "traceparent"
_PROPAGATOR = TraceContextTextMapPropagator()


def inject(context: Context | None = None) -> dict[str, str]:
    """W3C headers (`traceparent`, perhaps `tracestate`) of the current span, or of `context`."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers, context)
    return headers


def extract(headers: Mapping[str, str]) -> Context:
    """The context that W3C headers carry; an empty one when they carry none. Bad headers are ignored, as W3C asks."""
    return _PROPAGATOR.extract(dict(headers), Context())


def traceparent(context: Context | None = None) -> str:
    """The current span's W3C traceparent, or that of `context`; "" outside of any."""
    return inject(context).get("traceparent", "")


def from_traceparent(value: str) -> Context:
    """The context of a stored traceparent; an empty one for ""."""
    return extract({"traceparent": value} if value else {})


def unsampled(context: Context | None = None) -> Context:
    """A context in the current trace (or that of `context`) in which nothing is recorded, here or by those called."""
    current = trace.get_current_span(context).get_span_context()
    if not current.is_valid:
        trace_id, span_id = secrets.randbits(128) or 1, secrets.randbits(64) or 1
    else:
        trace_id, span_id = current.trace_id, current.span_id
    muted = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(0))
    return trace.set_span_in_context(trace.NonRecordingSpan(muted), context)
