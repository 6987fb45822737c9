"""What every server does around every call: request id, deadline, authorization, span, metrics, errors."""

import logging
import time
from collections.abc import Iterable, Mapping

import grpc
from google.rpc import status_pb2
from opentelemetry import context as otel
from opentelemetry import trace

from tidemill import errors
from tidemill.auth.policy import Authorizer
from tidemill.rpc import deadline, status
from tidemill.rpc.requests import begin_request
from tidemill.telemetry import attributes
from tidemill.telemetry.meters import CallMeters
from tidemill.telemetry.propagation import TRACEPARENT, extract
from tidemill.telemetry.setup import CHOSEN, Telemetry

LOG = logging.getLogger(__name__)


def unobserved(method: str) -> bool:
    """Whether a method is left alone: probes and reflection would only make noise."""
    return method.startswith(("/grpc.health.", "/grpc.reflection."))


class Observer:
    """Makes a `Call` for each request of one server."""

    def __init__(self, telemetry: Telemetry, authorizer: Authorizer) -> None:
        self.telemetry = telemetry
        self.authorizer = authorizer
        self.meters = CallMeters(telemetry.registry)

    def begin(self, method: str, metadata: Iterable[tuple[str, str | bytes]], peer: str, left: float | None) -> "Call":
        """Start to observe a call, in the current context, which becomes that of the call."""
        headers = {key: value for key, value in metadata if isinstance(value, str)}
        return Call(self, method, headers, peer, left)


class Call:
    """One call in work. Exactly one of `succeed`, `fail` and `cancel` ends it."""

    def __init__(self, observer: Observer, method: str, headers: Mapping[str, str], peer: str, left: float | None):
        self._observer = observer
        self._method = method
        self._meter = observer.meters.of(method)
        self._meter.begin()
        self._started = time.perf_counter()
        self.request_id = begin_request(headers.get(status.REQUEST_ID, ""))
        deadline.start(left)
        self.span = self._span(headers)
        self._headers, self._peer = headers, peer

    def _span(self, headers: Mapping[str, str]) -> trace.Span:
        """The span of the call, in its context; for a trace that begins here and is not kept, none is made at all."""
        telemetry = self._observer.telemetry
        if TRACEPARENT in headers:
            context = extract(headers)
        elif telemetry.chance():
            context = CHOSEN
        else:
            return trace.INVALID_SPAN
        span = telemetry.tracer.start_span(
            self._method.lstrip("/"),
            context=context,
            kind=trace.SpanKind.SERVER,
            attributes={
                attributes.RPC_SYSTEM: "grpc",
                attributes.RPC_METHOD: self._method,
                attributes.REQUEST_ID: str(self.request_id),
            },
            record_exception=False,
        )
        otel.attach(trace.set_span_in_context(span))
        return span

    def authorize(self) -> None:
        """Ask the authorizer.

        Raises:
            Unauthenticated, PermissionDenied: the caller may not go on.
        """
        self._observer.authorizer.authorize(self._method, self._headers, self._peer)

    def succeed(self) -> None:
        """The call ended well."""
        self._end(grpc.StatusCode.OK)

    def cancel(self) -> None:
        """The caller gave up, or its time was over."""
        self.span.set_status(trace.StatusCode.ERROR, "cancelled")
        self._end(grpc.StatusCode.CANCELLED)

    def fail(self, error: Exception) -> status_pb2.Status:
        """The call failed; the status to send. An error outside the catalogue says nothing of itself to the caller."""
        if not isinstance(error, errors.TidemillError):
            where = {"method": self._method, "request_id": str(self.request_id)}
            LOG.error("unexpected error", exc_info=error, extra=where)
            error = errors.Internal(status.UNEXPECTED, reason="UNEXPECTED")
        elif error.code in (errors.Code.INTERNAL, errors.Code.DATA_LOSS, errors.Code.UNAVAILABLE):
            LOG.warning("%s", error.message, extra={"method": self._method, "reason": error.reason})
        self.span.set_attribute(attributes.ERROR_REASON, error.reason)
        self.span.set_status(trace.StatusCode.ERROR, error.message)
        code = next(code for code in grpc.StatusCode if code.value[0] == error.code.value)
        self._end(code)
        return status.to_status(error, str(self.request_id))

    def _end(self, code: grpc.StatusCode) -> None:
        if self.span is not trace.INVALID_SPAN:
            self.span.set_attribute(attributes.RPC_STATUS, code.value[0])
            self.span.end()
        self._meter.end(code.name, time.perf_counter() - self._started)
