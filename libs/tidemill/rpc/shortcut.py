"""Unary calls past what grpcio's server does for each: brief ones are answered by the thread that hears of them.

grpcio gives every call to a thread of the pool, which has the request read, waits for it, runs the handler and sends
the answer. For a call of some hundred microseconds the two changes of threads, the threads' dispute over the
interpreter, and a state with a lock, a condition and four events cost several times more than the work. So the methods
that have brief calls are taken out of grpcio's server, which keeps everything else: the connections, its queue of
events and the thread that reads it. Here a call is three events: it is there, its request is there, its answer has
gone. When the request is there, its handler is asked whether this is a brief one: then it runs at once, on the thread
that reads. One that would only wait in a queue is put there by that thread, and answered by whoever has its answer. Any
other call goes to the pool's threads.

What this takes of grpcio is not public. Where it is not as expected, calls go to threads as ever: see `AVAILABLE`.
"""

import contextvars
import importlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from grpc_status import rpc_status

from tidemill import errors
from tidemill.rpc.callpool import CallPool
from tidemill.rpc.malformed import check, tolerant, unread
from tidemill.rpc.observe import Call, Observer

LOG = logging.getLogger(__name__)
cygrpc: Any = importlib.import_module("grpc._cython.cygrpc")
_server: Any = importlib.import_module("grpc._server")
_common: Any = importlib.import_module("grpc._common")
_NEEDED: Sequence[tuple[Any, Sequence[str]]] = (
    (_server, ("_HandlerCallDetails", "_ServerStage")),
    (cygrpc.Server, ("register_method", "request_registered_call")),
    (_common, ("STATUS_CODE_TO_CYGRPC_STATUS_CODE", "decode", "encode")),
)
AVAILABLE = all(hasattr(there, name) for there, names in _NEEDED for name in names)
"""Whether grpcio's server is made as is needed here."""
AHEAD = 16
"""Calls that gRPC may announce before it hears that the first of them was taken: fewer make it wait."""
_NOTHING: tuple[None, tuple[()]] = (None, ())
"""What grpcio's thread is told by an event that ends nothing."""


class Reply(Protocol):
    """Takes the answer to a request, or the error in its place."""

    def __call__(self, response: Any, error: Exception | None = None) -> None:
        """The answer is there. Called from any thread."""


@dataclass(frozen=True, slots=True)
class Brief:
    """What a unary method says of its brief calls, and of those that only wait in a queue until they are answered.

    Args:
        is_brief: whether a request is one; called for every request that could be read.
        submit: takes a request, its context, and whom to give the answer, from any thread, exactly once; or returns
            False and does not answer: then a thread does. Must not block.
        read: makes a request of bytes, given how they are read otherwise; None = just so.
        write: makes bytes of an answer; None = as otherwise.
    """

    is_brief: Callable[[Any], bool]
    submit: Callable[[Any, Any, "Reply"], bool] | None = None
    read: Callable[[bytes, Callable[[bytes], Any]], Any] | None = None
    write: Callable[[Any], bytes] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A unary method that has brief calls.

    Args:
        name: `/package.Service/Method`.
        how: what it says of its calls.
        reads, writes: the codecs; what cannot be read becomes an object that `check` refuses.
        behaviour: answers a request; has of its context what `Context` has, and where it may wait what `Later` has.
    """

    name: str
    how: Brief
    reads: Callable[[bytes], Any]
    writes: Callable[[Any], bytes]
    behaviour: Callable[[Any, Any], Any]


class Shortcut:
    """Serves methods that have brief calls.

    Args:
        server: grpcio's, not started yet, with these methods among its own.
        pool: bounds the calls, and runs those that are not brief.
        observer: sees every call.
        brief: the methods, by name.
    """

    def __init__(
        self,
        server: Any,
        pool: CallPool,
        observer: Observer,
        brief: Mapping[str, Brief],
    ) -> None:
        self.state = server._state
        self.pool = pool
        self.observer = observer
        self._methods = [self._take(name, how) for name, how in brief.items()]

    def start(self) -> None:
        """Take calls. The server has started."""
        slots = [_Slot(self, method) for method in self._methods for _ in range(AHEAD)]
        with self.state.lock:
            self.state.due.update(slots)
            for slot in slots:
                slot.arm()

    def _take(self, name: str, how: Brief) -> Method:
        """Take a method out of grpcio's hands."""
        state = self.state
        handler = state.registered_method_handlers.pop(name, None)
        if handler is None:
            details = _server._HandlerCallDetails(name, ())
            handler = next(filter(None, (some.service(details) for some in state.generic_handlers)))
            state.server.register_method(name)
        read, reads = how.read, tolerant(handler.request_deserializer) or bytes
        return Method(
            name=name,
            how=how,
            reads=reads if read is None else lambda data: read(data, reads),
            writes=how.write or handler.response_serializer or bytes,
            behaviour=handler.unary_unary,
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
            how = method.how
            if unread(request) or how.is_brief(request):
                self._run(request)
            else:
                Later(self._shortcut, method, self._event).begin(self, request)
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
        call = _observed(self._shortcut, method, context)
        try:
            if request is None:
                raise too_many()
            call.authorize()
            check(request)
            data = method.writes(method.behaviour(request, context))
        except Exception as error:  # noqa: BLE001 the edge: every error becomes a status here
            return _failure(call, error)
        call.succeed()
        return data, cygrpc.StatusCode.ok, b"", None

    def _end(self, data: bytes | None, code: Any, details: bytes, metadata: Any = None) -> None:
        """Send the answer. Nobody may have asked whether the caller has gone: that comes with it."""
        self._shortcut.pool.left()
        operations = (*_answer(data, code, details, metadata), cygrpc.ReceiveCloseOnServerOperation(0))
        self._event.call.start_server_batch(operations, self._gone)

    def _gone(self, event: Any) -> Any:
        """The answer has gone, or its caller."""
        return self, ()


class Later(Context):
    """A call that is answered later, and hears when its caller goes; it is its own context."""

    __slots__ = ("_call", "_callbacks", "_due", "_lock", "_method", "_shortcut")

    def __init__(self, shortcut: Shortcut, method: Method, event: Any) -> None:
        super().__init__(event)
        self._shortcut = shortcut
        self._method = method
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] | None = []
        self._due = 2
        """Events that are to come: the caller goes, the answer has gone."""

    def is_active(self) -> bool:
        """Whether the caller is still there."""
        return self._callbacks is not None

    def add_callback(self, callback: Callable[[], object]) -> bool:
        """Call `callback` when the caller goes, with its answer or without; False when it has gone already."""
        with self._lock:
            if self._callbacks is None:
                return False
            self._callbacks.append(callback)
            return True

    def begin(self, before: _Call, request: Any) -> None:
        """Have the request answered, in the place of the call that it was."""
        state = self._shortcut.state
        with state.lock:
            state.rpc_states.add(self)
            state.rpc_states.remove(before)
        self._event.call.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)
        own = contextvars.copy_context()
        if own.run(self._submit, request):
            return
        try:
            self._shortcut.pool.put(own.run, self._work, request)
        except RuntimeError:
            self._reply(None, errors.Unavailable("the server ends", reason="STOPPING"))

    def _submit(self, request: Any) -> bool:
        """Whether the answer comes by itself; else a thread has to make it."""
        self._call = _observed(self._shortcut, self._method, self)
        try:
            self._call.authorize()
            submit = self._method.how.submit
            return submit is not None and submit(request, self, self._reply)
        except Exception as error:  # noqa: BLE001 the edge: every error becomes a status here
            self._reply(None, error)
            return True

    def _work(self, request: Any) -> None:
        try:
            response = self._method.behaviour(request, self)
        except Exception as error:  # noqa: BLE001 the edge: every error becomes a status here
            self._reply(None, error)
        else:
            self._reply(response)

    def _reply(self, response: Any, error: Exception | None = None) -> None:
        """Send the answer."""
        data, code, details, metadata = None, cygrpc.StatusCode.ok, b"", None
        if error is None:
            try:
                data = self._method.writes(response)
            except Exception as unwritten:  # noqa: BLE001 the edge: every error becomes a status here
                error = unwritten
        if error is None:
            self._call.succeed()
        else:
            data, code, details, metadata = _failure(self._call, error)
        self._shortcut.pool.left()
        self._event.call.start_server_batch(_answer(data, code, details, metadata), self._sent)

    def _closed(self, event: Any) -> Any:
        with self._lock:
            callbacks, self._callbacks = self._callbacks, None
        for callback in callbacks or ():
            try:
                callback()
            except Exception:
                LOG.exception("what was to be told of the end of a call has failed")
        return self._one_less()

    def _sent(self, event: Any) -> Any:
        return self._one_less()

    def _one_less(self) -> Any:
        self._due -= 1
        return _NOTHING if self._due else (self, ())


def _observed(shortcut: Shortcut, method: Method, context: Context) -> Call:
    metadata = context.invocation_metadata() or ()
    return shortcut.observer.begin(method.name, metadata, context.peer(), context.time_remaining())


def _failure(call: Call, error: Exception) -> tuple[None, Any, bytes, Any]:
    """Data, code, details and trailing metadata of the answer to a call that failed."""
    failed = rpc_status.to_status(call.fail(error))
    code = _common.STATUS_CODE_TO_CYGRPC_STATUS_CODE[failed.code]
    return None, code, _common.encode(failed.details), failed.trailing_metadata


def _answer(data: bytes | None, code: Any, details: bytes, metadata: Any) -> tuple[Any, ...]:
    """The operations that send an answer."""
    start = cygrpc.SendInitialMetadataOperation(None, 0)
    status = cygrpc.SendStatusFromServerOperation(metadata, code, details, 0)
    return (start, status) if data is None else (start, cygrpc.SendMessageOperation(data, 0), status)


def too_many() -> errors.TidemillError:
    """What a call is told for which there is no place."""
    return errors.Exhausted("too many calls at a time; try again later", reason="TOO_MANY_CALLS", retry_after=0.2)
