"""Streams of messages as server-sent events or lines of JSON."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tidemill.errors import TidemillError, Unavailable
from tidemill.gateway import problems
from tidemill.gateway.observe import Exchange

EVENTS = "text/event-stream"
LINES = "application/x-ndjson"
HEARTBEAT_SECONDS = 15.0
"""Seconds of silence after which a comment is sent, so that proxies keep the connection."""
FIRST_SECONDS = 0.5
"""Seconds to wait for the first message before the response begins: a refused call still gets its own status."""

Item = tuple[str, str]
"""What becomes one event: (position to resume after, or "", JSON text)."""
_NO_CACHE = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class Streams:
    """Makes streaming responses, and ends them all when the process stops."""

    def __init__(self) -> None:
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Let every stream end; clients resume elsewhere."""
        self._stopping.set()

    async def response(self, request: Request, event: str, items: AsyncGenerator[Item, None]) -> Response:
        """The items as `text/event-stream`, or as `application/x-ndjson` when the request asks for that.

        Args:
            request: the request; its `Accept` header decides.
            event: name of each event.
            items: what to send; closed in the end.

        Raises:
            TidemillError: what `items` raises before its first item, if that is soon.
        """
        lines = LINES in request.headers.get("accept", "")
        if request.method == "HEAD":
            await items.aclose()
            return Response(headers=_NO_CACHE, media_type=LINES if lines else EVENTS)
        first = asyncio.ensure_future(_next(items))
        await asyncio.wait({first}, timeout=FIRST_SECONDS)
        if first.done() and isinstance(first.exception(), TidemillError):
            await items.aclose()
            first.result()
        exchange: Exchange = request.scope["exchange"]
        paced = _paced(items, first, self._stopping)
        body = _lines(paced, exchange) if lines else _events(paced, event, exchange)
        return StreamingResponse(body, headers=_NO_CACHE, media_type=LINES if lines else EVENTS)


def plain(
    exchange: Exchange, items: AsyncGenerator[Item, None], describe: Callable[[TidemillError], str], status: int = 200
) -> Response:
    """The items as server-sent events that have data alone, without a last one that says so.

    Args:
        exchange: the request, which fails with the stream.
        items: what to send; closed in the end. It is not cut short when the process begins to stop: what cannot be
            resumed may end in the time there is.
        describe: the JSON text of an error, which is the last event then.
        status: HTTP status.
    """
    first = asyncio.ensure_future(_next(items))
    body = _data(_paced(items, first, asyncio.Event()), exchange, describe)
    return StreamingResponse(body, status, headers=_NO_CACHE, media_type=EVENTS)


async def _data(
    items: AsyncGenerator[Item | None, None], exchange: Exchange, describe: Callable[[TidemillError], str]
) -> AsyncIterator[bytes]:
    try:
        async for item in items:
            yield b":\n\n" if item is None else f"data: {item[1]}\n\n".encode()
    except TidemillError as error:
        yield f"data: {describe(exchange.fail(error))}\n\n".encode()
    finally:
        await items.aclose()


async def _paced(
    items: AsyncGenerator[Item, None], first: "asyncio.Task[Item]", stopping: asyncio.Event
) -> AsyncGenerator[Item | None, None]:
    """The items, and None for silence. Raises `_Stopping` when the process stops."""
    pending, stop = first, asyncio.ensure_future(stopping.wait())
    try:
        while True:
            done, _ = await asyncio.wait(
                {pending, stop}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
            )
            if pending in done:
                try:
                    item = pending.result()
                except StopAsyncIteration:
                    return
                pending = asyncio.ensure_future(_next(items))
                yield item
            elif stop in done:
                raise _Stopping
            else:
                yield None
    finally:
        pending.cancel()
        stop.cancel()
        await asyncio.gather(pending, stop, return_exceptions=True)
        await items.aclose()


async def _next(items: AsyncGenerator[Item, None]) -> Item:
    return await anext(items)


class _Stopping(Exception):
    """The process stops."""


async def _events(items: AsyncGenerator[Item | None, None], event: str, exchange: Exchange) -> AsyncIterator[bytes]:
    try:
        async for item in items:
            if item is None:
                yield b":\n\n"
                continue
            position, text = item
            head = f"id: {position}\n" if position else ""
            yield f"{head}event: {event}\ndata: {text}\n\n".encode()
        yield b"event: end\ndata: {}\n\n"
    except _Stopping:  # no end: browsers connect again, and resume
        return
    except TidemillError as error:
        yield f"event: problem\ndata: {json.dumps(_problem(error, exchange))}\n\n".encode()
    finally:
        await items.aclose()


async def _lines(items: AsyncGenerator[Item | None, None], exchange: Exchange) -> AsyncIterator[bytes]:
    try:
        async for item in items:
            if item is not None:
                yield f"{item[1]}\n".encode()
    except _Stopping:
        error = Unavailable("the gateway stops: ask again", reason="STOPPING", retry_after=1)
        yield f"{json.dumps({'error': _problem(error, exchange)})}\n".encode()
    except TidemillError as error:
        yield f"{json.dumps({'error': _problem(error, exchange)})}\n".encode()
    finally:
        await items.aclose()


def _problem(error: TidemillError, exchange: Exchange) -> dict[str, Any]:
    return problems.document(exchange.fail(error), exchange.request_id)
