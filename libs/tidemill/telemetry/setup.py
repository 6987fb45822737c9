"""The telemetry of one process: a tracer, a metrics registry, and their way out."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opentelemetry import trace
from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, SamplingResult, TraceIdRatioBased
from opentelemetry.util.types import Attributes
from prometheus_client import CollectorRegistry

from tidemill.errors import Invalid
from tidemill.telemetry import attributes
from tidemill.telemetry.spanfiles import JsonLinesExporter

_CHOSEN = create_key("chosen")
CHOSEN = set_value(_CHOSEN, True, Context())
"""Context for the first span of a trace that has been chosen to be kept."""


class _Root(TraceIdRatioBased):
    """Keeps a part of the traces that begin here, and those that were chosen already."""

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: trace.SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[trace.Link] | None = None,
        trace_state: trace.TraceState | None = None,
    ) -> SamplingResult:
        """The decision on one trace."""
        ratio = super().should_sample
        decide = ALWAYS_ON.should_sample if get_value(_CHOSEN, parent_context) else ratio
        return decide(parent_context, trace_id, name, kind, attributes, links, trace_state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What a process needs to be seen: passed to whatever makes spans or metrics."""

    service: str
    tracer: trace.Tracer
    registry: CollectorRegistry
    provider: TracerProvider
    sample: float = 1.0

    def chance(self) -> bool:
        """Whether a trace that begins now is one of those that are kept; asked before a span is made, which costs more.

        A span for it must be started in the context `CHOSEN`.
        """
        return self.sample >= 1 or random.random() < self.sample

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
    provider = TracerProvider(resource=resource, sampler=ParentBased(_Root(sample)), shutdown_on_exit=False)
    processor = _processor(service, traces)
    if processor is not None:
        provider.add_span_processor(processor)
    return Telemetry(
        service=service,
        tracer=provider.get_tracer("tidemill"),
        registry=CollectorRegistry(),
        provider=provider,
        sample=sample,
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
