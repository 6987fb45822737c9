"""The interceptor of asyncio servers.

Every call runs in a task of its own, so what is attached to its context needs no detaching. Streaming handlers must be
async generators; those of health and reflection, which need not be, are only counted.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Optional, TypeAlias

import grpc
from grpc_status import rpc_status

from tidemill import errors
from tidemill.rpc.malformed import check, checked_async, tolerant
from tidemill.rpc.observe import Call, Observer, unobserved
from tidemill.rpc.status import to_status
from tidemill.slots import Slots

Handler: TypeAlias = Optional["grpc.RpcMethodHandler[Any, Any]"]
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class AioInterceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler of an asyncio server with an `Observer`, and leaves room for calls that are no streams.

    Args:
        observer: sees every call.
        streams: places for streams, of requests or responses.
        probes: places for the streams of health and reflection.
    """

    def __init__(self, observer: Observer, streams: Slots, probes: Slots) -> None:
        self._observer = observer
        self._streams = streams
        self._probes = probes

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """The handler that was found, wrapped."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None:
            return None
        if unobserved(method):
            return _counted(handler, self._probes) if handler.response_streaming else handler  # type: ignore[no-any-return]
        codec = {
            "request_deserializer": tolerant(handler.request_deserializer),
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
        room = self._streams if handler.request_streaming else nullcontext()
        return make_unary(self._unary(method, behaviour, room), **codec)

    def _begin(self, method: str, context: Context) -> Call:
        metadata = context.invocation_metadata() or ()
        left = context.time_remaining()
        return self._observer.begin(method, metadata, context.peer(), left)

    def _unary(
        self, method: str, behaviour: Callable[..., Awaitable[Any]], room: AbstractContextManager[None]
    ) -> Callable[..., Awaitable[Any]]:
        async def handle(request: Any, context: Context) -> Any:
            call = self._begin(method, context)
            try:
                call.authorize()
                with room:
                    response = await behaviour(_readable(request), context)
            except asyncio.CancelledError:
                call.cancel()
                raise
            except Exception as error:  # noqa: BLE001 the edge: every error becomes a status here
                await _abort(context, call, error)
            call.succeed()
            return response

        return handle

    def _streaming(
        self, method: str, behaviour: Callable[..., AsyncIterator[Any]]
    ) -> Callable[..., AsyncIterator[Any]]:
        async def handle(request: Any, context: Context) -> AsyncIterator[Any]:
            call = self._begin(method, context)
            try:
                call.authorize()
                with self._streams:
                    async for response in behaviour(_readable(request), context):
                        yield response
            except (asyncio.CancelledError, GeneratorExit):
                call.cancel()
                raise
            except Exception as error:  # noqa: BLE001 the edge: every error becomes a status here
                await _abort(context, call, error)
            call.succeed()

        return handle


def _readable(request: Any) -> Any:
    """A request, or a stream of them, that could be read. Raises Invalid."""
    if hasattr(request, "__aiter__"):
        return checked_async(request)
    check(request)
    return request


def _counted(handler: Any, places: Slots) -> Any:
    """A streaming handler of health or reflection that takes a place."""
    behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream

    async def refuse(context: Context, error: errors.Exhausted) -> None:
        await context.abort_with_status(rpc_status.to_status(to_status(error)))

    async def generate(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            with places:
                async for response in behaviour(request, context):
                    yield response
        except errors.Exhausted as error:
            await refuse(context, error)

    async def write(request: Any, context: Context) -> None:
        try:
            with places:
                await behaviour(request, context)
        except errors.Exhausted as error:
            await refuse(context, error)

    make = grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
    chosen: Any = generate if inspect.isasyncgenfunction(behaviour) else write
    return make(chosen, handler.request_deserializer, handler.response_serializer)


async def _abort(context: Context, call: Call, error: Exception) -> None:
    if isinstance(error, grpc.RpcError):  # reading the request stream failed: the caller has gone
        error = errors.Cancelled("the request stream broke off", reason="STREAM_BROKEN")
    await context.abort_with_status(rpc_status.to_status(call.fail(error)))
