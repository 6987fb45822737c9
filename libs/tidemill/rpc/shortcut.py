"""Brief calls, answered by the thread that hears of them.

grpcio gives every call to a thread of the pool, which has the request read, waits for it, runs the handler and sends
the answer. For a call of some hundred microseconds the two changes of threads, and the threads' dispute over the
interpreter, cost more than the work. Here the pool has the request read itself. When it is there, its handler is asked
whether this is a brief one: then it runs at once, on the thread that reads; else it goes to the pool's threads.

What this takes of grpcio is not public. Where it is not as expected, calls go to threads as ever: see `AVAILABLE`.
"""

import importlib
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ParamSpec, TypeVar, cast

from tidemill.rpc.callpool import CallPool, Job

LOG = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")
cygrpc: Any = importlib.import_module("grpc._cython.cygrpc")
_server: Any = importlib.import_module("grpc._server")
_NEEDED = (
    "_abort",
    "_call_behavior",
    "_possibly_finish_call",
    "_serialize_response",
    "_status",
    "_unary_response_in_pool",
    "_OPEN",
    "_CLOSED",
    "_CANCELLED",
    "_RECEIVE_MESSAGE_TOKEN",
)
AVAILABLE = all(hasattr(_server, name) for name in _NEEDED)
"""Whether grpcio's server is made as is needed here."""
_ARGUMENTS = 7
"""What grpcio gives a pool to run a unary call: the function, the event, the state, the handler, what waits for the
request, and both codecs."""


class ShortcutPool(CallPool):
    """A pool for a server whose handlers say, by a function `brief` that they carry, which requests are brief."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run a call: on a thread, or where its request is heard of."""
        if len(args) != _ARGUMENTS or args[0] is not _server._unary_response_in_pool:
            return super().submit(fn, *args, **kwargs)
        _, event, state, behavior, _, reads, writes = cast(tuple[Any, ...], args)
        brief = getattr(behavior, "brief", None)
        if brief is None:
            return super().submit(fn, *args, **kwargs)
        call = _Call(self, event, state, behavior, brief, reads, writes)
        self._come()
        call.begin()
        return cast("Future[T]", call)

    def put(self, run: Callable[..., Any], *arguments: Any) -> None:
        """Run something on a thread, as a part of a call that is counted already. Raises RuntimeError at the end."""
        self._put(Job(Future(), run, arguments, {}))

    def left(self) -> None:
        """A call has ended."""
        self._left()


class _Call:
    """One call. To grpcio it is the future of what was submitted, of which it asks nothing but word of the end."""

    __slots__ = ("_behavior", "_brief", "_ended", "_event", "_pool", "_reads", "_state", "_then", "_writes")

    def __init__(
        self,
        pool: ShortcutPool,
        event: Any,
        state: Any,
        behavior: Any,
        brief: Callable[[Any], bool],
        reads: Callable[[bytes], Any],
        writes: Callable[[Any], bytes],
    ) -> None:
        self._pool = pool
        self._event = event
        self._state = state
        self._behavior = behavior
        self._brief = brief
        self._reads = reads
        self._writes = writes
        self._then: Callable[[Any], object] | None = None
        self._ended = False

    def begin(self) -> None:
        """Have the request read. The call's condition is held."""
        self._event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._received)
        self._state.due.add(_server._RECEIVE_MESSAGE_TOKEN)

    def add_done_callback(self, then: Callable[[Any], object]) -> None:
        """Call `then` when the call has ended."""
        if self._ended:
            then(self)
        else:
            self._then = then

    def _received(self, event: Any) -> Any:
        """The request is there, or will never be; called by the thread that hears of it."""
        message = event.batch_operations[0].message()
        try:
            if message is None:
                self._nothing()
            else:
                self._answer(message)
        except Exception:
            LOG.exception("a call could not be answered")
            self._fail(cygrpc.StatusCode.unknown, b"the call could not be answered")
        with self._state.condition:
            return _server._possibly_finish_call(self._state, _server._RECEIVE_MESSAGE_TOKEN)

    def _answer(self, message: bytes) -> None:
        request = self._reads(message)
        if self._brief(request):
            self._run(request)
        else:
            try:
                self._pool.put(self._run, request)
            except RuntimeError:
                self._fail(cygrpc.StatusCode.unavailable, b"the server ends")

    def _run(self, request: Any) -> None:
        event, state = self._event, self._state
        try:
            response, answered = _server._call_behavior(event, state, self._behavior, request, self._reads)
            if answered:
                data = _server._serialize_response(event, state, response, self._writes)
                if data is not None:
                    _server._status(event, state, data)
        finally:
            self._end()

    def _nothing(self) -> None:
        """The caller has gone, or has ended its side without a request."""
        with self._state.condition:
            if self._state.client is _server._OPEN:
                self._state.client = _server._CLOSED
        self._fail(cygrpc.StatusCode.unimplemented, b"exactly one request message is required")

    def _fail(self, code: Any, details: bytes) -> None:
        with self._state.condition:
            if not self._state.statused:
                _server._abort(self._state, self._event.call, code, details)
        self._end()

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._pool.left()
        if self._then is not None:
            self._then(self)
