"""What is done around every HTTP request: request id, trace, span, authorization, metrics, and the log of faults."""

import ipaddress
import logging
import time

from opentelemetry import context as otel
from opentelemetry import trace
from prometheus_client import Counter, Histogram
from starlette.requests import Request

from tidemill import errors
from tidemill.auth.policy import Authorizer
from tidemill.rpc.requests import begin_request
from tidemill.rpc.status import REQUEST_ID, UNEXPECTED
from tidemill.telemetry import attributes
from tidemill.telemetry.propagation import extract
from tidemill.telemetry.setup import Telemetry

LOG = logging.getLogger(__name__)
_VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_FAULTS = frozenset({errors.Code.INTERNAL, errors.Code.DATA_LOSS, errors.Code.UNAVAILABLE, errors.Code.UNKNOWN})


class HttpObserver:
    """Makes an `Exchange` for each request of one gateway."""

    def __init__(self, telemetry: Telemetry, authorizer: Authorizer) -> None:
        self.telemetry = telemetry
        self.authorizer = authorizer
        registry, labels = telemetry.registry, ["method", "route"]
        self.handled = Counter(
            attributes.METRIC_HTTP_HANDLED, "Finished requests.", [*labels, "status"], registry=registry
        )
        self.seconds = Histogram(attributes.METRIC_HTTP_SECONDS, "Duration of requests.", labels, registry=registry)

    def begin(self, request: Request) -> "Exchange":
        """Start to observe a request, in the current context, which becomes that of the request."""
        return Exchange(self, request)


class Exchange:
    """One request and its response. `end` ends it."""

    def __init__(self, observer: HttpObserver, request: Request) -> None:
        self._observer = observer
        self._started = time.perf_counter()
        self._headers = dict(request.headers)
        self._peer = peer(request)
        self.verb = request.method if request.method in _VERBS else "OTHER"
        self.route = ""
        self.request_id = str(begin_request(self._headers.get(REQUEST_ID, "")))
        self.span: trace.Span = trace.INVALID_SPAN

    def routed(self, route: str, *, traced: bool) -> None:
        """The request's route is known: the template of its path, "" for none. A traced one has a span from here on."""
        self.route = route
        if not traced:
            return
        self.span = self._observer.telemetry.tracer.start_span(
            f"{self.verb} {route}".rstrip(),
            context=extract(self._headers),
            kind=trace.SpanKind.SERVER,
            attributes={
                attributes.HTTP_METHOD: self.verb,
                attributes.HTTP_ROUTE: route,
                attributes.REQUEST_ID: self.request_id,
            },
            record_exception=False,
        )
        otel.attach(trace.set_span_in_context(self.span))

    def authorize(self) -> None:
        """Ask the authorizer, which knows a request as `HTTP <verb> <route>`.

        Raises:
            Unauthenticated, PermissionDenied: the caller may not go on.
        """
        self._observer.authorizer.authorize(f"HTTP {self.verb} {self.route}", self._headers, self._peer)

    def fail(self, error: Exception) -> errors.TidemillError:
        """The error to answer with. One outside of the catalogue says nothing of itself to the caller."""
        if not isinstance(error, errors.TidemillError):
            LOG.error("unexpected error", exc_info=error, extra={"route": self.route, "request_id": self.request_id})
            error = errors.Internal(UNEXPECTED, reason="UNEXPECTED")
        elif error.code in _FAULTS:
            LOG.warning("%s", error.message, extra={"route": self.route, "reason": error.reason})
        self.span.set_attribute(attributes.ERROR_REASON, error.reason)
        self.span.set_status(trace.StatusCode.ERROR, error.message)
        return error

    def end(self, status: int) -> None:
        """The response is sent, or cannot be."""
        self.span.set_attribute(attributes.HTTP_STATUS, status)
        self.span.end()
        self._observer.handled.labels(self.verb, self.route, str(status)).inc()
        self._observer.seconds.labels(self.verb, self.route).observe(time.perf_counter() - self._started)


def peer(request: Request) -> str:
    """The other end in gRPC's words, as the authorizer knows it; "" when it is not known."""
    if request.client is None:
        return ""
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return ""
    if address.version == 6 and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return (
        f"ipv4:{address}:{request.client.port}" if address.version == 4 else f"ipv6:[{address}]:{request.client.port}"
    )
