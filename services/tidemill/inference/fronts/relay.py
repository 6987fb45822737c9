"""Passes calls on to the first process, and its answers, errors and streams back."""

from collections.abc import Iterator
from typing import Any

import grpc
from opentelemetry import trace

from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.errors import DeadlineExceeded
from tidemill.inference.protocols.oip.servicer import SERVICE
from tidemill.rpc.methods import Method, methods
from tidemill.rpc.options import channel_options
from tidemill.rpc.requests import request_id
from tidemill.rpc.status import REQUEST_ID, translated
from tidemill.telemetry.propagation import TRACEPARENT, inject
from tidemill.yielding import about_to_wait

Context = grpc.ServicerContext
Metadata = list[tuple[str, str | bytes]]
_CONNECTION = ("user-agent", "te", "content-type", "grpc-", ":", REQUEST_ID)
"""Headers that belong to one connection, or are made anew."""
_EVER = 1e8


class Relay:
    """A servicer of the whole protocol that has the first process answer.

    Args:
        address: of the first process, as `unix:<path>`.
        max_message: largest message in bytes.
    """

    def __init__(self, address: str, max_message: int) -> None:
        options = channel_options(max_message=max_message, own_connection=True)
        self._channel = grpc.insecure_channel(address, options=options)
        self._stub = pg.GRPCInferenceServiceStub(self._channel)
        for method in methods(SERVICE):
            setattr(self, method.name, self._passed_on(method))

    def unary(self, name: str, request: Any, context: Context) -> Any:
        """The first process's answer, for as long as the caller wants it. Raises TidemillError: what is wrong."""
        call = getattr(self._stub, name).future(request, timeout=_left(context), metadata=_headers(context))
        if not context.add_callback(call.cancel):  # the caller has gone already
            call.cancel()
        about_to_wait()
        with translated():
            try:
                return call.result()
            except grpc.FutureCancelledError as error:
                raise DeadlineExceeded("nobody waits for the answer any more", reason="EXPIRED") from error

    def stream(self, name: str, requests: Iterator[Any], context: Context) -> Iterator[Any]:
        """The first process's answers to a stream of requests. Raises TidemillError."""
        call = getattr(self._stub, name)(requests, timeout=_left(context), metadata=_headers(context))
        if not context.add_callback(call.cancel):  # the caller has gone already
            call.cancel()
        try:
            with translated():
                yield from call
        finally:
            call.cancel()

    def close(self) -> None:
        """Close the connection; calls in work are cancelled."""
        self._channel.close()

    def _passed_on(self, method: Method) -> Any:
        pass_on = self.stream if method.client_streaming else self.unary

        def handle(request: Any, context: Context) -> Any:
            return pass_on(method.name, request, context)

        return handle


def _left(context: Context) -> float | None:
    """Seconds that the caller waits; None when that is for ever, which gRPC says with a large number."""
    left = context.time_remaining()
    return None if left is None or left > _EVER else left


def _headers(context: Context) -> Metadata:
    """The caller's headers; the trace is that of the span of this call, where there is one."""
    given: Metadata = [
        (key, value) for key, value in context.invocation_metadata() or () if not key.startswith(_CONNECTION)
    ]
    if trace.get_current_span().is_recording():
        given = [(key, value) for key, value in given if key != TRACEPARENT] + list(inject().items())
    return [*given, (REQUEST_ID, request_id())]
