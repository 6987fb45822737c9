"""The interceptor of servers with a thread pool.

Threads serve one call after another, so each call runs in a copy of the thread's context that is dropped afterwards.
"""

import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Optional, TypeAlias, TypeVar

import grpc
from grpc_status import rpc_status

from tidemill import errors
from tidemill.rpc.callpool import CallPool
from tidemill.rpc.malformed import check, checked, tolerant
from tidemill.rpc.observe import Call, Observer, unobserved
from tidemill.rpc.probes import Probes
from tidemill.rpc.shortcut import too_many
from tidemill.rpc.silence import Silence
from tidemill.yielding import about_to_wait

Handler: TypeAlias = Optional["grpc.RpcMethodHandler[Any, Any]"]
T = TypeVar("T")
_END = object()


class ThreadInterceptor(grpc.ServerInterceptor):
    """Wraps every handler of a thread-pool server with an `Observer`, and bounds what holds threads.

    Args:
        observer: sees every call.
        pool: the threads of ordinary calls; when it is full, more are refused.
        probes: the threads of health, reflection and refusals.
        silence: ends calls whose client sends nothing.
    """

    def __init__(
        self,
        observer: Observer,
        pool: CallPool,
        probes: Probes,
        silence: Silence,
    ) -> None:
        self._wrapped: dict[str, tuple[Any, Any]] = {}
        self._observer = observer
        self._pool = pool
        self._probes = probes
        self._silence = silence

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler that was found, wrapped."""
        handler: Any = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if unobserved(method):
            return self._probes.handler(handler)  # type: ignore[no-any-return]
        if self._pool.full:
            # Of this kind it is run at once, and does not wait for a request.
            return grpc.stream_unary_rpc_method_handler(self._probes.here(self._unary(method, _refuse)))
        known, wrapped = self._wrapped.get(method, (None, None))
        if known is not handler:
            wrapped = self._wrap(method, handler)
            self._wrapped[method] = handler, wrapped
        return wrapped  # type: ignore[no-any-return]

    def _wrap(self, method: str, handler: Any) -> Any:
        codec = {
            "request_deserializer": tolerant(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        behaviour: Any
        if handler.response_streaming:
            behaviour = self._heard(handler.stream_stream) if handler.request_streaming else handler.unary_stream
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(self._streaming(method, behaviour), **codec)
        behaviour = self._heard(handler.stream_unary) if handler.request_streaming else handler.unary_unary
        make_unary = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make_unary(self._unary(method, behaviour), **codec)

    def _heard(self, behaviour: Callable[..., T]) -> Callable[..., T]:
        """`behaviour`, for clients that go on sending."""

        def handle(requests: Iterator[Any], context: grpc.ServicerContext) -> T:
            return behaviour(checked(self._silence.watch(requests, context)), context)

        return handle

    def _begin(self, method: str, context: grpc.ServicerContext) -> Call:
        metadata = context.invocation_metadata() or ()
        return self._observer.begin(
            method,
            metadata,
            context.peer(),
            context.time_remaining(),
        )

    def _unary(self, method: str, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            call = self._begin(method, context)
            try:
                call.authorize()
                check(request)
                response = behaviour(request, context)
            except Exception as error:  # noqa: BLE001 the edge: every error becomes a status here
                _abort(context, call, error)
            call.succeed()
            return response

        def isolated(request: Any, context: grpc.ServicerContext) -> Any:
            return contextvars.copy_context().run(handle, request, context)

        return isolated

    def _streaming(self, method: str, behaviour: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def handle(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            about_to_wait()  # for its client, more than it computes
            own = contextvars.copy_context()
            call = own.run(self._begin, method, context)
            try:
                own.run(call.authorize)
                check(request)
                responses = own.run(lambda: iter(behaviour(request, context)))
                while (response := own.run(next, responses, _END)) is not _END:
                    yield response
            except GeneratorExit:
                call.cancel()
                raise
            except Exception as error:  # noqa: BLE001 the edge: every error becomes a status here
                _abort(context, call, error)
            call.succeed()

        return handle


def _refuse(request: Any, context: grpc.ServicerContext) -> NoReturn:
    raise too_many()


def _abort(context: grpc.ServicerContext, call: Call, error: Exception) -> NoReturn:
    if isinstance(error, grpc.RpcError):  # reading the request stream failed: the caller has gone
        error = errors.Cancelled("the request stream broke off", reason="STREAM_BROKEN")
    context.abort_with_status(rpc_status.to_status(call.fail(error)))
    raise AssertionError("abort_with_status raises")
