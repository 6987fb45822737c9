"""The telemetry of one process: a tracer, a metrics registry, and their way out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from prometheus_client import CollectorRegistry

from tidemill.errors import Invalid
from tidemill.telemetry import attributes
from tidemill.telemetry.spanfiles import JsonLinesExporter

_PROPAGATOR = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What a process needs to be seen: passed to whatever makes spans or metrics."""

    service: str
    tracer: trace.Tracer
    registry: CollectorRegistry
    provider: TracerProvider

    def shutdown(self) -> None:
        """Send what is left and end the exporter."""
        self.provider.shutdown()


def setup(service: str, *, traces: str = "none", sample: float = 1.0, instance: str = "") -> Telemetry:
    """The telemetry of the process `service`.

    Args:
        service: `service.name` of every span.
        traces: where spans go: `none`, `file:<directory>`, or `otlp:<host:port>` (gRPC without TLS).
        sample: part of the traces begun here that are kept; the parent's decision wins.
        instance: `service.instance.id`, when there are several of a kind.
    """
    resource = Resource({attributes.SERVICE_NAME: service, attributes.SERVICE_INSTANCE: instance or service})
    provider = TracerProvider(resource=resource, sampler=ParentBased(TraceIdRatioBased(sample)), shutdown_on_exit=False)
    processor = _processor(service, traces)
    if processor is not None:
        provider.add_span_processor(processor)
    return Telemetry(
        service=service, tracer=provider.get_tracer("tidemill"), registry=CollectorRegistry(), provider=provider
    )


def _processor(service: str, traces: str) -> SpanProcessor | None:
    kind, _, target = traces.partition(":")
    if kind in ("", "none"):
        return None
    if kind == "file" and target:
        # Written when they end, not in batches: what a killed process did is still seen.
        return SimpleSpanProcessor(JsonLinesExporter(Path(target), service))
    if kind == "otlp" and target:
        return BatchSpanProcessor(_otlp(target), max_queue_size=4096)
    raise Invalid(f"traces: {traces!r} is not none, file:<directory> or otlp:<host:port>")


def _otlp(target: str) -> SpanExporter:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # heavy: only when used

    return OTLPSpanExporter(endpoint=target, insecure=True, timeout=10)


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
        ids = RandomIdGenerator()
        trace_id, span_id = ids.generate_trace_id(), ids.generate_span_id()
    else:
        trace_id, span_id = current.trace_id, current.span_id
    muted = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(0))
    return trace.set_span_in_context(trace.NonRecordingSpan(muted), context)
