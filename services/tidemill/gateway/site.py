"""The ASGI application of one port: the checks before a request is looked at, its route, and what becomes of errors."""

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tidemill import errors
from tidemill.gateway.hosts import Hosts
from tidemill.gateway.observe import Exchange, HttpObserver
from tidemill.gateway.problems import Refused
from tidemill.gateway.route import Route, Table
from tidemill.rpc import deadline
from tidemill.rpc.status import REQUEST_ID

TIMEOUT = "x-request-timeout"
"""Request header: seconds that the request may take."""
MAX_TIMEOUT = 3600.0
MAX_HEADERS = 100
MAX_HEAD = 32 << 10
"""Largest path, query and headers together, in bytes."""
_ESCAPED = (b"%2f", b"%5c", b"%00")


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """One protocol: its routes, and how it says that something is wrong.

    Args:
        owns: whether a path belongs to the protocol.
        table: its routes.
        unknown: (verb, path, verbs that the path has) -> the error of a request without a route.
        render: (error, request id) -> the response.
        inflates: whether bodies may be compressed.
    """

    owns: Callable[[str], bool]
    table: Table
    unknown: Callable[[str, str, Collection[str]], errors.TidemillError]
    render: Callable[[errors.TidemillError, str], Response]
    inflates: bool = False


class Gate:
    """Bounds the requests in work at a time, over all ports."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside = 0

    @contextmanager
    def place(self) -> Iterator[bool]:
        """A place inside while the block runs; False when there was none."""
        if self._inside >= self._most:
            yield False
            return
        self._inside += 1
        try:
            yield True
        finally:
            self._inside -= 1


class Site:
    """Serves protocols on one port.

    Args:
        fronts: the protocols; a path that none owns belongs to the first.
        observer: sees every request.
        gate: bounds the requests in work.
        hosts: checks whom a request is addressed to.
        timeout: longest time of a timed request, in seconds.
    """

    def __init__(
        self, fronts: Sequence[Front], observer: HttpObserver, gate: Gate, hosts: Hosts, timeout: float
    ) -> None:
        self.fronts = tuple(fronts)
        self._observer = observer
        self._gate = gate
        self._hosts = hosts
        self._timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. One that fails after its first byte is broken off."""
        body = _Body(scope, receive)
        request = Request(scope, body)
        front = next((front for front in self.fronts if front.owns(scope["path"])), self.fronts[0])
        exchange = scope["exchange"] = self._observer.begin(request)
        status = 500
        with self._gate.place() as inside:
            try:
                response = await self._respond(front, request, body, exchange, inside)
                status = response.status_code
                response.headers.update({REQUEST_ID: exchange.request_id, "X-Content-Type-Options": "nosniff"})
                await response(scope, receive, send)
            except Exception as error:  # noqa: BLE001 the edge: an answer that has begun cannot become another
                exchange.fail(error)
            finally:
                exchange.end(status)

    async def _respond(
        self, front: Front, request: Request, body: "_Body", exchange: Exchange, inside: bool
    ) -> Response:
        error: Exception
        try:
            if not inside:
                raise errors.Unavailable("too many requests at a time", reason="BUSY", retry_after=1)
            return await self._handle(front, request, body, exchange)
        except asyncio.CancelledError:  # the drain is over
            error = errors.Unavailable("the gateway stops", reason="STOPPING", retry_after=1)
        except Exception as raised:  # noqa: BLE001 the edge: every error becomes a response here
            error = raised
        return front.render(exchange.fail(error), exchange.request_id)

    async def _handle(self, front: Front, request: Request, body: "_Body", exchange: Exchange) -> Response:
        _check(request, inflates=front.inflates)
        self._hosts.check(request)
        path = request.scope["path"]
        found = front.table.find(request.method, path)
        route = found[0] if isinstance(found, tuple) else None
        exchange.routed(route.template if route else "", traced=route is None or route.traced)
        exchange.authorize()
        if not isinstance(found, tuple):
            raise front.unknown(request.method, path, found)
        chosen, request.scope["path_params"] = found
        seconds = _timeout(request, self._timeout if chosen.timed else None)
        deadline.start(seconds)
        return await _while_wanted(chosen, request, body, seconds)


class _Body:
    """The receiving end of a request, which knows when the body has been read: at once, where there is none."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self._receive = receive
        headers = dict(scope["headers"])
        self._empty = b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0"
        self._read = asyncio.Event()
        if self._empty:
            self._read.set()

    async def __call__(self) -> Message:
        if self._empty:
            return {"type": "http.request", "body": b"", "more_body": False}
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._read.set()
        return message

    async def gone(self) -> None:
        """Return when the caller has hung up after its body was read."""
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _while_wanted(route: Route, request: Request, body: _Body, seconds: float | None) -> Response:
    """The handler's response, unless its time is over or its caller has gone before."""
    work = asyncio.ensure_future(route.handler(request))
    gone = asyncio.ensure_future(body.gone())
    try:
        done, _ = await asyncio.wait({work, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if work in done:
            return work.result()
        if gone in done:
            raise errors.Cancelled("the caller hung up", reason="HUNG_UP")
        raise errors.DeadlineExceeded(f"the request took longer than {seconds:g} s", reason="TIMEOUT")
    finally:
        gone.cancel()
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


def _check(request: Request, *, inflates: bool) -> None:
    """Refuse what no route would take, before anything of it is used."""
    headers, path = request.headers, request.scope["path"]
    size = len(request.scope["raw_path"]) + len(request.scope["query_string"])
    if len(headers) > MAX_HEADERS or size + sum(len(key) + len(value) for key, value in headers.raw) > MAX_HEAD:
        text = f"a request may have at most {MAX_HEADERS} headers, and {MAX_HEAD} bytes before its body"
        raise Refused(431, text, reason="HEAD_TOO_LARGE")
    if "content-length" in headers and "transfer-encoding" in headers:
        raise Refused(400, "Content-Length and Transfer-Encoding exclude each other", reason="AMBIGUOUS_LENGTH")
    if not inflates and headers.get("content-encoding", "identity").lower() not in ("", "identity"):
        raise Refused(
            415,
            "compressed bodies are not taken",
            reason="UNSUPPORTED_ENCODING",
            headers={"Accept-Encoding": "identity"},
        )
    escaped = request.scope["raw_path"].lower()
    if not path.isprintable() or any(part in escaped for part in _ESCAPED):
        raise Refused(400, "the path holds characters that no name has", reason="INVALID_PATH")


def _timeout(request: Request, most: float | None) -> float | None:
    """Seconds for the request: those of its header, but not more than `most`; None = no limit."""
    text = request.headers.get(TIMEOUT)
    if text is None:
        return most
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= MAX_TIMEOUT:
        raise errors.invalid(TIMEOUT, f"must be a number of seconds in (0, {MAX_TIMEOUT:g}]")
    return seconds if most is None else min(seconds, most)
