"""The telemetry of one process: a tracer, a metrics registry, and their way out."""

from dataclasses import dataclass
from pathlib import Path

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client import CollectorRegistry

from tidemill.errors import Invalid
from tidemill.telemetry import attributes
from tidemill.telemetry.spanfiles import JsonLinesExporter


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
