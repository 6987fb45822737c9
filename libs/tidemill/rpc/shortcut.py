"""Brief calls, answered by the thread that hears of them, past what grpcio's server does for each call.

grpcio gives every call to a thread of the pool, which has the request read, waits for it, runs the handler and sends
the answer. For a call of some hundred microseconds the two changes of threads, the threads' dispute over the
interpreter, and a state with a lock, a condition and four events cost several times more than the work. So the methods
that have brief calls are taken out of grpcio's server, which keeps everything else: the connections, its queue of
events and the thread that reads it. Here a call is three events: it is there, its request is there, its answer has
gone. When the request is there, its handler is asked whether this is a brief one: then it runs at once, on the thread
that reads; else the call gets the state that it would have had, and goes to the pool's threads.

What this takes of grpcio is not public. Where it is not as expected, calls go to threads as ever: see `AVAILABLE`.
"""

import contextvars
import importlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_status import rpc_status

from tidemill import errors
from tidemill.rpc.callpool import CallPool
from tidemill.rpc.malformed import check, unread
from tidemill.rpc.observe import Observer

LOG = logging.getLogger(__name__)
cygrpc: Any = importlib.import_module("grpc._cython.cygrpc")
_server: Any = importlib.import_module("grpc._server")
_common: Any = importlib.import_module("grpc._common")
_NEEDED: Sequence[tuple[Any, Sequence[str]]] = (
    (
        _server,
        (
            "_HandlerCallDetails",
            "_RPCState",
            "_ServerStage",
            "_abort",
            "_call_behavior",
            "_receive_close_on_server",
            "_serialize_response",
            "_status",
            "_RECEIVE_CLOSE_ON_SERVER_TOKEN",
        ),
    ),
    (cygrpc.Server, ("register_method", "request_registered_call")),
    (_common, ("STATUS_CODE_TO_CYGRPC_STATUS_CODE", "decode", "encode")),
)
AVAILABLE = all(hasattr(there, name) for there, names in _NEEDED for name in names)
"""Whether grpcio's server is made as is needed here."""
AHEAD = 16
"""Calls that gRPC may announce before it hears that the first of them was taken: fewer make it wait."""
_NOTHING: tuple[None, tuple[()]] = (None, ())
"""What grpcio's thread is told by an event that ends nothing."""


@dataclass(frozen=True, slots=True)
class Brief:
    """What a unary method says of its brief calls.

    Args:
        is_brief: whether a request is one; called for every request that could be read.
        read: makes a request of bytes, given how they are read otherwise; None = just so.
        write: makes bytes of an answer; None = as otherwise.
    """

    is_brief: Callable[[Any], bool]
    read: Callable[[bytes, Callable[[bytes], Any]], Any] | None = None
    write: Callable[[Any], bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A unary method that has brief calls.

    Args:
        name: `/package.Service/Method`.
        brief: whether a request is a brief one.
        reads, writes: the codecs; what cannot be read becomes an object that `check` refuses.
        behaviour: answers a brief request; has of its context what `Context` has.
        observed: answers any other; an ordinary handler that observes itself.
    """

    name: str
    brief: Callable[[Any], bool]
    reads: Callable[[bytes], Any]
    writes: Callable[[Any], bytes]
    behaviour: Callable[[Any, Any], Any]
    observed: Callable[[Any, grpc.ServicerContext], Any]


class Shortcut:
    """Serves methods that have brief calls.

    Args:
        server: grpcio's, not started yet, with these methods among its own.
        pool: bounds the calls, and runs those that are not brief.
        observer: sees every call.
        brief: the methods, by name.
        wrap: makes an ordinary handler, which observes itself, of a handler.
    """

    def __init__(
        self,
        server: Any,
        pool: CallPool,
        observer: Observer,
        brief: Mapping[str, Brief],
        wrap: Callable[[str, Any], Any],
    ) -> None:
        self.state = server._state
        self.pool = pool
        self.observer = observer
        self._methods = [self._take(name, how, wrap) for name, how in brief.items()]

    def start(self) -> None:
        """Take calls. The server has started."""
        slots = [_Slot(self, method) for method in self._methods for _ in range(AHEAD)]
        with self.state.lock:
            self.state.due.update(slots)
            for slot in slots:
                slot.arm()

    def _take(self, name: str, how: Brief, wrap: Callable[[str, Any], Any]) -> Method:
        """Take a method out of grpcio's hands."""
        state = self.state
        handler = state.registered_method_handlers.pop(name, None)
        if handler is None:
            details = _server._HandlerCallDetails(name, ())
            handler = next(filter(None, (some.service(details) for some in state.generic_handlers)))
            state.server.register_method(name)
        wrapped = wrap(name, handler)
        read, reads = how.read, wrapped.request_deserializer
        return Method(
            name=name,
            brief=how.is_brief,
            reads=reads if read is None else lambda data: read(data, reads),
            writes=how.write or wrapped.response_serializer,
            behaviour=handler.unary_unary,
            observed=wrapped.unary_unary,
        )


class _Slot:
    """Announces one call after another; the tag of their first events."""

    __slots__ = ("_method", "_shortcut")

    def __init__(self, shortcut: Shortcut, method: Method) -> None:
        self._shortcut = shortcut
        self._method = method

    def arm(self) -> None:
        """Have the next call announced. The server's lock is held, and it has not begun to end."""
        state = self._shortcut.state
        state.server.request_registered_call(state.completion_queue, state.completion_queue, self._method.name, self)

    def __call__(self, event: Any) -> Any:
        """A call is there, or there will be none any more."""
        state = self._shortcut.state
        with state.lock:
            if event.success and state.stage is _server._ServerStage.STARTED:
                self.arm()
            else:
                state.due.discard(self)
                # So that grpcio looks whether anything is left: in place of a call that is over.
                state.rpc_states.add(self)
        if event.success:
            _Call(self._shortcut, self._method, event).begin()
        return _NOTHING if self in state.due else (self, ())


class Context:
    """What a brief call knows of itself: of grpc's `ServicerContext` the part that asks nothing of the connection."""

    __slots__ = ("_event",)

    def __init__(self, event: Any) -> None:
        self._event = event

    def invocation_metadata(self) -> Any:
        """The caller's metadata."""
        return self._event.invocation_metadata

    def peer(self) -> str:
        """The caller's address."""
        return str(_common.decode(self._event.call.peer()))

    def time_remaining(self) -> float:
        """Seconds until the caller's deadline; infinity when it has none."""
        left: float = self._event.call_details.deadline - time.time()
        return max(left, 0.0)

    def is_active(self) -> bool:
        """True: that the caller has gone is heard of behind the call."""
        return True


class _Call:
    """One call, in the place of grpcio's state for as long as it can be a brief one."""

    __slots__ = ("_event", "_method", "_shortcut")

    def __init__(self, shortcut: Shortcut, method: Method, event: Any) -> None:
        self._shortcut = shortcut
        self._method = method
        self._event = event

    def begin(self) -> None:
        """Have the request read, unless there are too many calls."""
        shortcut = self._shortcut
        shortcut.state.rpc_states.add(self)
        full = shortcut.pool.full
        shortcut.pool.come()
        if full:
            self._run(None)
        else:
            self._event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._received)

    def _received(self, event: Any) -> Any:
        """The request is there, or will never be."""
        message = event.batch_operations[0].message()
        method = self._method
        try:
            if message is None:
                self._end(None, cygrpc.StatusCode.unimplemented, b"exactly one request message is required")
                return _NOTHING
            request = method.reads(message)
            if unread(request) or method.brief(request):
                self._run(request)
            else:
                self._hand_on(request)
        except Exception:
            LOG.exception("a call could not be answered")
            self._end(None, cygrpc.StatusCode.unknown, b"the call could not be answered")
        return _NOTHING

    def _run(self, request: Any) -> None:
        """Answer, here and now; None = refuse."""
        self._end(*contextvars.copy_context().run(self._outcome, request))

    def _outcome(self, request: Any) -> tuple[bytes | None, Any, bytes, Any]:
        """Data, code, details and trailing metadata of the answer."""
        method, context = self._method, Context(self._event)
        call = self._shortcut.observer.begin(
            method.name, context.invocation_metadata() or (), context.peer(), context.time_remaining()
        )
        try:
            if request is None:
                raise too_many()
            call.authorize()
            check(request)
            data = method.writes(method.behaviour(request, context))
        except Exception as error:  # noqa: BLE001 the edge: every error becomes a status here
            failed = rpc_status.to_status(call.fail(error))
            code = _common.STATUS_CODE_TO_CYGRPC_STATUS_CODE[failed.code]
            return None, code, _common.encode(failed.details), failed.trailing_metadata
        call.succeed()
        return data, cygrpc.StatusCode.ok, b"", None

    def _end(self, data: bytes | None, code: Any, details: bytes, metadata: Any = None) -> None:
        """Send the answer. Nobody may have asked whether the caller has gone: that comes with it."""
        self._shortcut.pool.left()
        operations = [
            cygrpc.SendInitialMetadataOperation(None, 0),
            cygrpc.SendStatusFromServerOperation(metadata, code, details, 0),
            cygrpc.ReceiveCloseOnServerOperation(0),
        ]
        if data is not None:
            operations.append(cygrpc.SendMessageOperation(data, 0))
        self._event.call.start_server_batch(operations, self._gone)

    def _gone(self, event: Any) -> Any:
        """The answer has gone, or its caller."""
        return self, ()

    def _hand_on(self, request: Any) -> None:
        """Let a thread answer, with a state of grpcio's own, which hears when the caller goes."""
        state, served = _server._RPCState(), self._shortcut.state
        with state.condition:
            close = (cygrpc.ReceiveCloseOnServerOperation(0),)
            self._event.call.start_server_batch(close, _server._receive_close_on_server(state))
            state.due.add(_server._RECEIVE_CLOSE_ON_SERVER_TOKEN)
        with served.lock:
            served.rpc_states.add(state)
            served.rpc_states.remove(self)
        try:
            self._shortcut.pool.put(self._work, state, request)
        except RuntimeError:
            self._shortcut.pool.left()
            with state.condition:
                _server._abort(state, self._event.call, cygrpc.StatusCode.unavailable, b"the server ends")

    def _work(self, state: Any, request: Any) -> None:
        """Answer on a thread of the pool."""
        event, method = self._event, self._method
        try:
            response, answered = _server._call_behavior(event, state, method.observed, request, method.reads)
            if answered:
                data = _server._serialize_response(event, state, response, method.writes)
                if data is not None:
                    _server._status(event, state, data)
        finally:
            self._shortcut.pool.left()


def too_many() -> errors.TidemillError:
    """What a call is told for which there is no place."""
    return errors.Exhausted("too many calls at a time; try again later", reason="TOO_MANY_CALLS", retry_after=0.2)
