"""A stream of requests and its answers: one thread reads and hands requests on, another one sends the answers.

Requests of a stream are handed on in their order, without waiting for the answers to earlier ones. What is in work is
bounded, and so are answers that wait to be sent: a client that does not read stops its own requests and models, until
it is given up.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextvars import Context as Variables
from dataclasses import dataclass

from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.errors import Exhausted, Internal, TidemillError
from tidemill.inference.calls import Answer, Receive
from tidemill.inference.loaded import Loaded
from tidemill.inference.protocols.oip import responses
from tidemill.inference.protocols.oip.requests import Form
from tidemill.inference.protocols.oip.responses import Writer
from tidemill.inference.tracing import Recorded

IN_WORK = 64
"""Most requests of one stream in work or with an answer that is not sent yet."""
ANSWERS = 64
"""Most answers that wait to be sent when a decoupled model gives one more."""
PATIENCE = 30.0
"""Seconds that a model waits for a client that does not read, before the stream is given up."""


class Exchange:
    """One request of a stream, on its way. Its resources are let go of when nothing holds it any more.

    Args:
        id: the request's name.
    """

    __slots__ = ("_holds", "_lock", "decoupled", "form", "id", "loaded", "recorded")

    def __init__(self, id: str) -> None:
        self.id = id
        self.loaded: Loaded | None = None
        """What runs it, in use until the end; None while nothing does."""
        self.decoupled = False
        """Whether it may have any number of answers."""
        self.form = Form(id)
        """What its answers shall look like."""
        self.recorded: Recorded | None = None
        """Its span, if it is recorded."""
        self._lock = threading.Lock()
        self._holds = 1

    def use(self, loaded: Loaded) -> None:
        """Let `loaded`, which is in use, run it."""
        self.loaded = loaded
        self.decoupled = loaded.configuration.decoupled

    def hold(self) -> None:
        """Keep it for one reply more."""
        with self._lock:
            self._holds += 1

    def drop(self) -> None:
        """Keep it for one reply less; or, after the last reply, no longer for those to come."""
        with self._lock:
            self._holds -= 1
            held = self._holds
        if held:
            return
        self.form.release()
        if self.recorded is not None:
            self.recorded.end()
        if self.loaded is not None:
            self.loaded.__exit__(None, None, None)


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply to a request of the stream; None = nothing but the end."""

    exchange: Exchange
    content: Answer | TidemillError | None
    last: bool
    size: int


class Outbox:
    """Replies that wait to be sent. Safe to use from any thread.

    Args:
        largest: most bytes of answers that wait, beyond which nothing more is begun.
        in_work: most requests without their last reply sent.
        answers: most replies that wait, beyond which decoupled models wait.
        patience: seconds for which they do.
    """

    def __init__(
        self, largest: int, *, in_work: int = IN_WORK, answers: int = ANSWERS, patience: float = PATIENCE
    ) -> None:
        self._largest, self._in_work, self._answers, self._patience = largest, in_work, answers, patience
        self._changed = threading.Condition()
        self._waiting: deque[Reply] = deque()
        self._taken: Reply | None = None
        self._bytes = 0
        self._begun = 0
        self._all_read = False
        self._failure: Exception | None = None
        self._open = True

    def is_open(self) -> bool:
        """Whether somebody still reads."""
        return self._open

    def room(self) -> bool:
        """Return when one more request may be begun; False when nobody reads any more."""
        with self._changed:
            self._changed.wait_for(
                lambda: not self._open or (self._begun < self._in_work and self._bytes <= self._largest)
            )
            return self._open

    def begin(self) -> None:
        """One more request is in work."""
        with self._changed:
            self._begun += 1

    def put(self, exchange: Exchange, content: Answer | TidemillError | None, last: bool) -> None:
        """Have a reply sent. Replies of decoupled models wait while too many others do."""
        size = sum(array.nbytes for array in content.outputs.values()) if isinstance(content, Answer) else 0
        with self._changed:
            if exchange.decoupled and not self._changed.wait_for(self._may_wait, self._patience):
                self._failure = Exhausted("the client does not read its answers", reason="SLOW_READER")
                self._open = False
            if self._open:
                exchange.hold()
                self._waiting.append(Reply(exchange, content, last, size))
                self._bytes += size
            self._begun -= last and not self._open
            self._changed.notify_all()
        if last:
            exchange.drop()

    def finish(self, failure: Exception | None = None) -> None:
        """No more requests come; with a failure, the stream ends by it."""
        with self._changed:
            self._all_read = True
            self._failure = self._failure or failure
            self._changed.notify_all()

    def take(self) -> Reply | None:
        """The next reply, after the one taken before has been sent; None when there will be none.

        Raises:
            Exception: the stream is at its end for this reason.
        """
        self.sent()
        with self._changed:
            self._changed.wait_for(
                lambda: self._waiting or not self._open or self._failure or (self._all_read and not self._begun)
            )
            if self._failure is not None:
                raise self._failure
            if not self._open or not self._waiting:
                return None
            self._taken = self._waiting.popleft()
            return self._taken

    def sent(self) -> None:
        """The reply that was taken last needs nothing any more."""
        with self._changed:
            reply, self._taken = self._taken, None
            if reply is None:
                return
            self._bytes -= reply.size
            self._begun -= reply.last
            self._changed.notify_all()
        reply.exchange.drop()

    def close(self) -> None:
        """Nobody reads any more: what waits is dropped, and so is all that comes."""
        with self._changed:
            self._open = False
            left, self._waiting = self._waiting, deque()
            self._changed.notify_all()
        for reply in left:
            reply.exchange.drop()

    def _may_wait(self) -> bool:
        return not self._open or (len(self._waiting) < self._answers and self._bytes <= self._largest)


Dispatch = Callable[[pb.ModelInferRequest, Exchange, Callable[[], bool], Receive], None]
"""Hands one request on: fills the exchange, and has the replies go to the receiver; or raises TidemillError."""


def answers(
    requests: Iterator[pb.ModelInferRequest],
    outbox: Outbox,
    dispatch: Dispatch,
    writer: Writer,
    variables: Variables,
    strict: bool,
) -> Iterator[pb.ModelStreamInferResponse]:
    """The messages of a stream.

    Args:
        requests: of the client.
        outbox: closed when the client has gone.
        dispatch: hands a request on.
        writer: makes the messages.
        variables: context in which requests are read and handed on.
        strict: whether the first error ends the stream, in place of a message.

    Raises:
        TidemillError: the stream ends by it.
    """
    reader = threading.Thread(
        target=variables.run, args=(_read, requests, outbox, dispatch), name="oip-stream", daemon=True
    )
    reader.start()
    try:
        while (reply := outbox.take()) is not None:
            if (message := _message(reply, writer, strict)) is not None:
                yield message
    finally:
        outbox.sent()
        outbox.close()


def _read(requests: Iterator[pb.ModelInferRequest], outbox: Outbox, dispatch: Dispatch) -> None:
    failure: Exception | None = None
    try:
        while outbox.room() and (request := next(requests, None)) is not None:
            outbox.begin()
            _hand_on(request, outbox, dispatch)
    except Exception as error:  # noqa: BLE001 the edge of this thread: the one that sends answers raises it
        failure = error
    outbox.finish(failure)


def _hand_on(request: pb.ModelInferRequest, outbox: Outbox, dispatch: Dispatch) -> None:
    exchange = Exchange(request.id)

    def receive(reply: Answer | TidemillError | None, last: bool) -> None:
        outbox.put(exchange, reply, last)

    try:
        dispatch(request, exchange, outbox.is_open, receive)
    except TidemillError as error:
        outbox.put(exchange, error, True)
    except BaseException:
        exchange.drop()
        raise


def _message(reply: Reply, writer: Writer, strict: bool) -> pb.ModelStreamInferResponse | None:
    exchange, content = reply.exchange, reply.content
    if content is None:
        if not exchange.decoupled:
            content = Internal("the model gave no answer", reason="NO_ANSWER")
        elif not exchange.form.empty_final:
            return None
        else:
            content = Answer(outputs={})
    message = pb.ModelStreamInferResponse()
    if isinstance(content, Answer):
        assert exchange.loaded is not None
        try:
            message.infer_response.CopyFrom(writer.response(exchange.loaded, exchange.form, content))
        except TidemillError as error:
            content = error
    if isinstance(content, TidemillError):
        if strict:
            raise content
        message.error_message = content.message
        message.infer_response.id = exchange.id
    if exchange.loaded is not None:  # clients look for it in answers of any model
        responses.final(message.infer_response, reply.last)
    return message
