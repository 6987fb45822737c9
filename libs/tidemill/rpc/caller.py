"""Calls over asyncio channels: span, trace headers, request id, deadline and errors of every call, in one place."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from opentelemetry import trace

from tidemill import errors
from tidemill.rpc import deadline
from tidemill.rpc.options import CONTROL_MESSAGE, channel_options
from tidemill.rpc.requests import request_id
from tidemill.rpc.status import REQUEST_ID, translated
from tidemill.telemetry import attributes
from tidemill.telemetry.propagation import inject

Metadata = tuple[tuple[str, str], ...]

DEFAULT_TIMEOUT = 30.0
"""Seconds that a unary call may take when its caller says nothing."""


class Caller:
    """Calls services at one address. Errors of calls are those of `tidemill.errors`.

    Args:
        address: `host:port`, or gRPC's own forms such as `ipv4:1.2.3.4:5,1.2.3.5:5`.
        services: descriptors of the services that will be called.
        tracer: makes client spans; without one, or outside of a span, calls only pass the trace on.
        timeout: default seconds of a unary call.
    """

    def __init__(
        self,
        address: str,
        services: Sequence[ServiceDescriptor],
        *,
        tracer: trace.Tracer | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_message: int = CONTROL_MESSAGE,
    ) -> None:
        self.address = address
        self.channel = grpc.aio.insecure_channel(address, options=channel_options(services, max_message))
        self._tracer = tracer
        self._timeout = timeout

    async def unary(self, method: Any, request: Any, *, timeout: float | None = None) -> Any:
        """One request, one response. `method` is an attribute of a stub."""
        with call_context(self._tracer, method) as metadata:
            return await method(request, metadata=metadata, timeout=deadline.timeout(timeout or self._timeout))

    async def stream(
        self, method: Any, request: Any, *, timeout: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[Any, None]:
        """One request, or an iterable of them, many responses. Closing the iterator cancels the call."""
        with call_context(self._tracer, method) as own:
            call = method(request, metadata=(*own, *metadata), timeout=deadline.timeout(timeout))
            try:
                async for response in call:
                    yield response
            finally:
                call.cancel()

    async def upload(self, method: Any, requests: AsyncIterable[Any], *, timeout: float | None = None) -> Any:
        """Many requests, one response."""
        with call_context(self._tracer, method) as metadata:
            return await method(requests, metadata=metadata, timeout=deadline.timeout(timeout))

    async def ready(self, timeout: float) -> None:
        """Return when the address accepts connections.

        Raises:
            Unavailable: it did not within `timeout` seconds.
        """
        try:
            await asyncio.wait_for(self.channel.channel_ready(), timeout)
        except TimeoutError as error:
            raise errors.Unavailable(f"{self.address} does not answer", reason="UNREACHABLE") from error

    async def close(self) -> None:
        """Close the channel; calls in work are cancelled."""
        await self.channel.close()


@contextmanager
def call_context(tracer: trace.Tracer | None, method: Any) -> Iterator[Metadata]:
    """The metadata of one outgoing call; its span while the block runs; its error translated."""
    name = method._method
    full = name.decode() if isinstance(name, bytes) else str(name)
    span: trace.Span = trace.INVALID_SPAN
    if tracer is not None and trace.get_current_span().is_recording():
        span = tracer.start_span(
            full.lstrip("/"),
            kind=trace.SpanKind.CLIENT,
            attributes={attributes.RPC_SYSTEM: "grpc", attributes.RPC_METHOD: full},
        )
    headers = inject(trace.set_span_in_context(span) if span.is_recording() else None)
    headers[REQUEST_ID] = request_id()
    try:
        with translated():
            yield tuple(headers.items())
    except errors.TidemillError as error:
        span.set_attribute(attributes.RPC_STATUS, error.code.value)
        span.set_status(trace.StatusCode.ERROR, error.message)
        raise
    except GeneratorExit:  # the caller has seen enough of a stream: that is no fault
        raise
    except BaseException as error:
        span.set_status(trace.StatusCode.ERROR, type(error).__name__)
        raise
    finally:
        span.end()
