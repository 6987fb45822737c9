"""The spans of a worker."""

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context, trace
from opentelemetry.util.types import AttributeValue

from tidemill.telemetry import attributes
from tidemill.telemetry.propagation import unsampled
from tidemill.training.worker.stop import Stopped


@contextmanager
def span(tracer: trace.Tracer, name: str, given: dict[str, AttributeValue] | None = None) -> Iterator[trace.Span]:
    """A span, the current one while the block runs; an error ends it as failed, being stopped does not."""
    with tracer.start_as_current_span(
        name, attributes=given, record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield current
        except Stopped:
            raise
        except BaseException as error:
            current.set_attribute(attributes.EXCEPTION_TYPE, type(error).__name__)
            current.set_status(trace.StatusCode.ERROR, str(error)[:1024])
            raise


@contextmanager
def muted() -> Iterator[None]:
    """Nothing is recorded while the block runs, here or by those that are called, though the trace stays the same."""
    token = context.attach(unsampled())
    try:
        yield
    finally:
        context.detach(token)
