"""The spans of runs: each recorded call shows in its own trace with which others it ran, and why then."""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType

from opentelemetry import context as otel
from opentelemetry import trace

from tidemill.inference.calls import Call
from tidemill.telemetry import attributes


class RunSpans:
    """Makes the spans of runs of one version.

    Args:
        tracer: makes them.
        model, version: its name and number.
    """

    def __init__(self, tracer: trace.Tracer, model: str, version: str) -> None:
        self._tracer = tracer
        self._model = model
        self._version = version

    def of(self, calls: Sequence[Call], closed: str) -> AbstractContextManager[object]:
        """A span around a run for each of its calls that is recorded: for others it would cost time for nothing.

        Args:
            calls: that run together.
            closed: why the batch was closed; "" where nothing was waited for.
        """
        recorded = [call for call in calls if call.trace is not None]
        if not recorded:
            return nullcontext()
        return _Spans(self, recorded, self._attributes(calls, closed))

    def start(self, call: Call, found: dict[str, str | int | float], links: list[trace.Link]) -> trace.Span:
        """The span of one call; it has begun."""
        if attributes.BATCH_CLOSED in found:
            found = found | {attributes.QUEUE_SECONDS: (call.started - call.arrived) / 1e9}
        return self._tracer.start_span(
            attributes.SPAN_EXECUTE, context=call.trace, attributes=found, links=links, record_exception=False
        )

    def _attributes(self, calls: Sequence[Call], closed: str) -> dict[str, str | int | float]:
        found: dict[str, str | int | float] = {attributes.MODEL: self._model, attributes.MODEL_VERSION: self._version}
        if closed:
            found |= {
                attributes.BATCH_SIZE: sum(call.rows for call in calls),
                attributes.BATCH_REQUESTS: len(calls),
                attributes.BATCH_CLOSED: closed,
            }
        return found


class _Spans:
    """One span a call; what the run itself records joins the first, and the others point at it."""

    def __init__(self, by: RunSpans, calls: Sequence[Call], found: dict[str, str | int | float]) -> None:
        first = by.start(calls[0], found, [])
        link = trace.Link(first.get_span_context())
        self._spans = [first, *(by.start(call, found, [link]) for call in calls[1:])]

    def __enter__(self) -> None:
        self._token = otel.attach(trace.set_span_in_context(self._spans[0]))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        otel.detach(self._token)
        ended = time.time_ns()
        for span in self._spans:
            if error is not None:
                span.set_status(trace.StatusCode.ERROR)
            span.end(ended)
