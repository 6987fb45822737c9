"""The interceptor of servers with a thread pool.

Threads serve one call after another, so each call runs in a copy of the thread's context that is dropped afterwards.
"""

import contextvars
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, Optional, TypeAlias

import grpc
from grpc_status import rpc_status

from tidemill import errors
from tidemill.rpc.observe import Call, Observer, unobserved

Handler: TypeAlias = Optional["grpc.RpcMethodHandler[Any, Any]"]
_END = object()


class ThreadInterceptor(grpc.ServerInterceptor):
    """Wraps every handler of a thread-pool server with an `Observer`."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler that was found, wrapped."""
        handler: Any = continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or unobserved(method):
            return handler  # type: ignore[no-any-return]
        codec = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
            make = (
                grpc.stream_stream_rpc_method_handler
                if handler.request_streaming
                else grpc.unary_stream_rpc_method_handler
            )
            return make(self._streaming(method, behaviour), **codec)
        behaviour = handler.stream_unary if handler.request_streaming else handler.unary_unary
        make_unary = (
            grpc.stream_unary_rpc_method_handler if handler.request_streaming else grpc.unary_unary_rpc_method_handler
        )
        return make_unary(self._unary(method, behaviour), **codec)

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
            own = contextvars.copy_context()
            call = own.run(self._begin, method, context)
            try:
                own.run(call.authorize)
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


def _abort(context: grpc.ServicerContext, call: Call, error: Exception) -> NoReturn:
    if isinstance(error, grpc.RpcError):  # reading the request stream failed: the caller has gone
        error = errors.Cancelled("the request stream broke off", reason="STREAM_BROKEN")
    context.abort_with_status(rpc_status.to_status(call.fail(error)))
    raise AssertionError("abort_with_status raises")
