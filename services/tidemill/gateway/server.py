"""HTTP servers inside the asyncio loop that also does gRPC: several ports, clear errors, a drain."""

import asyncio
import contextlib
import functools
import math
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from tidemill import errors

HEAD_SECONDS = 30.0
"""How long a client may take to say what it wants."""
STALL_SECONDS = 60.0
"""How long a client may take nothing of an answer."""
KEEP_ALIVE_SECONDS = 45
LINGER_SECONDS = 5.0
"""How long what a client still says is read and thrown away, once it has been answered before it was done."""
MAX_HEAD = 32 << 10
"""Bytes of an unfinished request line and headers that are waited on."""
MAX_CHUNKS = 1 << 14
"""Most chunks of one chunked body: each costs time however small it is."""
BACKLOG = 512


class _Reader(h11.Connection):
    """h11's parser with a limit on the number of chunks, and for no request that another could read otherwise."""

    chunks = 0

    def next_event(self) -> Any:
        """The next event. Raises `RemoteProtocolError` for one chunk too many, and for two ways to find the end."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            _check(event)
            self.chunks = 0
        elif isinstance(event, h11.Data) and event.chunk_start:
            self.chunks += 1
            if self.chunks > MAX_CHUNKS:
                raise h11.RemoteProtocolError("too many chunks")
        return event


def _check(request: h11.Request) -> None:
    """Raise `RemoteProtocolError` for what h11 reads and others before it may read differently (RFC 9112, 6.1, 6.3)."""
    if request.http_version not in (b"1.1", b"1.0"):
        raise h11.RemoteProtocolError("another version of HTTP")
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version == b"1.0"):
        raise h11.RemoteProtocolError("chunks where a length is said, or where there are none yet")


class _Timer:
    """Calls `action` after `seconds`, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, action: Callable[[], None]) -> None:
        self._loop, self._seconds, self._action = loop, seconds, action
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        if self._handle is None:
            self._handle = self._loop.call_later(self._seconds, self._action)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class _Lingering:
    """A transport that, told to close, can be left open for a client that is not done talking.

    With unread bytes in it a socket that closes sends a reset, at which clients may throw the answer away unread.

    Args:
        transport: the one beneath.
        linger: called at the first close; whether to say only that no more will be sent.
    """

    def __init__(self, transport: asyncio.Transport, linger: Callable[[], bool]) -> None:
        self._transport, self._linger = transport, linger
        self._closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def close(self) -> None:
        """Close at once, or later."""
        again, self._closing = self._closing, True
        if again or self._transport.is_closing() or not self._linger():
            self._transport.close()

    def is_closing(self) -> bool:
        """Whether it was told to."""
        return self._closing or self._transport.is_closing()


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 connection, which also ends clients that are too slow to say or to take anything, and lets
    those finish that were answered before they had said all.

    Args:
        most: connections that a port has at a time; one more is closed at once.
    """

    def __init__(self, *args: Any, most: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = _Reader(h11.SERVER, MAX_HEAD)
        self._most = most
        self._head = _Timer(self.loop, HEAD_SECONDS, self._abort)
        self._stall = _Timer(self.loop, STALL_SECONDS, self._abort)
        self._rest = _Timer(self.loop, LINGER_SECONDS, self._abort)
        self._lingers = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, _Lingering(transport, self._linger))
        # asyncio does so itself, but not for a listening socket that was handed to it.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self._most:
            transport.abort()
        self._head.start()

    def data_received(self, data: bytes) -> None:
        """Wait on for a request that is not complete yet."""
        if self._lingers:
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._head.stop()
        else:
            self._head.start()

    def pause_writing(self) -> None:
        """The client takes nothing for now."""
        super().pause_writing()
        self._stall.start()

    def resume_writing(self) -> None:
        """The client goes on."""
        self._stall.stop()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._head.stop()
        self._stall.stop()
        self._rest.stop()
        super().connection_lost(exc)

    def _linger(self) -> bool:
        """Begin to throw away the rest of a body that was answered before its end; False, when there is none."""
        if self.conn.their_state is not h11.SEND_BODY or not self.transport.can_write_eof():
            return False
        self._lingers = True
        self._head.stop()
        self._rest.start()
        self.transport.write_eof()
        self.transport.resume_reading()
        return True

    def _abort(self) -> None:
        self.transport.abort()


class _Uvicorn(uvicorn.Server):
    """A server that leaves the signals of the process to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave them as they are."""
        yield


class HttpServer:
    """Serves ASGI applications, each on a port of its own.

    Args:
        main: what the first port serves.
        others: name -> (port, what it serves); a free port for 0.
        connections: most connections a port.
        stopping: called when the drain begins, to end what would not end by itself.
        name: of the first port, among `ports`.
    """

    def __init__(
        self,
        main: ASGIApp,
        others: Mapping[str, tuple[int, ASGIApp]],
        *,
        connections: int,
        stopping: Callable[[], None],
        name: str = "management",
    ) -> None:
        self.main = main
        self._name = name
        self._others = dict(others)
        self._connections = connections
        self._stopping = stopping
        self.servers: list[uvicorn.Server] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.ports: dict[str, int] = {}

    async def start(self, host: str, port: int) -> int:
        """Listen on every port, and return the first.

        Raises:
            Unavailable: with reason PORT_IN_USE.
        """
        wanted = {self._name: (port, self.main), **self._others}
        with contextlib.ExitStack() as undo:
            listeners = {}
            for name, (number, _) in wanted.items():
                listeners[name] = undo.enter_context(_listen(host, number))
            undo.pop_all()
        for name, listener in listeners.items():
            self.ports[name] = int(listener.getsockname()[1])
            server = _Uvicorn(self._config(wanted[name][1]))
            self.servers.append(server)
            self._tasks.append(asyncio.ensure_future(server.serve(sockets=[listener])))
        return self.ports[self._name]

    def _config(self, app: ASGIApp) -> uvicorn.Config:
        return uvicorn.Config(
            app,
            http=cast(Any, functools.partial(Connection, most=self._connections)),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            # The peer is who connects, whatever its headers claim.
            proxy_headers=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            reset_contextvars=True,
        )

    async def set_serving(self, serving: bool) -> None:
        """Nothing: what can be answered is, whichever service is away; `/readyz` and the status route tell of all."""

    async def stop(self, grace: float) -> None:
        """Take no new connections, and end requests in work after `grace` seconds at most."""
        self._stopping()
        for server in self.servers:
            server.config.timeout_graceful_shutdown = math.ceil(grace)
            server.should_exit = True
        await asyncio.gather(*self._tasks)
        # uvicorn cancels what is late, but does not wait for it.
        late = {task for server in self.servers for task in server.server_state.tasks}
        if late:
            await asyncio.wait(late, timeout=1.0)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise errors.Unavailable(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            reason="PORT_IN_USE",
            metadata={"address": f"{host}:{port}"},
        ) from error
