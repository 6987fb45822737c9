"""The server's side of a model in Python: answers what it asks, runs other models for it, takes its reports."""

import logging
import queue
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

from tidemill.errors import Exhausted, FailedPrecondition, Invalid, TidemillError, Unavailable
from tidemill.inference.calls import Answer, Call
from tidemill.inference.isolation.channel import ChannelClosed, Message
from tidemill.inference.isolation.faults import to_fault
from tidemill.inference.isolation.output import Allowance
from tidemill.inference.isolation.session import Session
from tidemill.inference.pythonbackend.constants import (
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START,
)
from tidemill.inference.runtimes.base import Invoke, ModelMetrics
from tidemill.slots import Slots
from tidemill.tensors import dtypes

LOG = logging.getLogger(__name__)
AT_A_TIME, WAITING = 16, 1024
"""Requests of a model to others that run at a time, and that run and wait together."""
_LEVELS = {"verbose": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class PythonDesk:
    """Serves all processes of one model. Its methods are called on the threads that serve these, and do not block.

    Args:
        model: name, for the log.
        invoke: has other models run; None = there are none.
        metrics: where the model's metrics go; None = nowhere, and it can define none.
    """

    def __init__(self, model: str, invoke: Invoke | None, metrics: ModelMetrics | None) -> None:
        self._model = model
        self._invoke = invoke
        self._metrics = metrics
        self._threads = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix=f"requests of {model}")
        self._places = Slots(WAITING, f"requests of model '{model}' to others", "TOO_MANY_REQUESTS")
        self._allowance = Allowance(model)
        self._ready: dict[int, queue.SimpleQueue[bool]] = {}
        self._numbers = count(1)
        self._gone: set[Session] = set()
        self._asks: dict[str, Callable[[Session, Message], Mapping[str, Any] | None]] = {
            "alive": self._alive,
            "bls": self._other,
            "metric_family": lambda _, message: self._metric_family(message),
            "metric_series": lambda _, message: self._measured().series(
                message["name"], message["labels"], message["buckets"]
            ),
            "metric_change": lambda _, message: self._measured().record(
                message["name"], message["labels"], message["operation"], message["value"]
            ),
            "metric_value": lambda _, message: {"value": self._measured().value(message["name"], message["labels"])},
        }

    def ask(self, session: Session, message: Message) -> None:
        """Answer a question, now or when another model has answered."""
        try:
            body = self._asks[message["what"]](session, message)
        except TidemillError as error:
            body = {"error": to_fault(error), "final": True}
        if message["what"] != "bls" or body is not None:
            session.answer(message["id"], body or {})

    def tell(self, session: Session, message: Message) -> None:
        """Take a line for the log, or word of the model's state."""
        if message["what"] == "log":
            if self._allowance.take():
                LOG.log(_LEVELS[message["level"]], "%s", message["text"], extra={"model": self._model})
        elif message["what"] == "ready" and (waiting := self._ready.get(message["id"])) is not None:
            waiting.put(message["ready"])

    def ended(self, session: Session) -> None:
        """Run nothing more for this process."""
        self._gone.add(session)

    def ready(self, session: Session, timeout: float) -> bool:
        """What the model says of itself; False when it says nothing within `timeout` seconds. Blocks."""
        number = next(self._numbers)
        waiting = self._ready[number] = queue.SimpleQueue()
        try:
            session.send({"op": "ready", "id": number})
            return waiting.get(timeout=timeout)
        except (ChannelClosed, queue.Empty):
            return False
        finally:
            del self._ready[number]

    def close(self) -> None:
        """End the threads and forget the metrics."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._metrics is not None:
            self._metrics.forget(self)

    def _alive(self, session: Session, message: Message) -> Mapping[str, Any]:
        call = session.call(message["ticket"])
        return {"alive": call is not None and call.wanted}

    def _measured(self) -> ModelMetrics:
        if self._metrics is None:
            raise FailedPrecondition("models can define no metrics here", reason="NO_METRICS")
        return self._metrics

    def _metric_family(self, message: Message) -> None:
        self._measured().define(self, message["name"], message["description"], message["kind"])

    def _other(self, session: Session, message: Message) -> None:
        """Have another model run. Raises TidemillError when it does not even come to that."""
        if self._invoke is None:
            raise FailedPrecondition("models cannot call others here", reason="NO_OTHER_MODELS")
        call = self._call(session, message)
        receive = _Answers(session, message["id"], decoupled=message["decoupled"], done=self._leave)
        self._places.__enter__()
        invoke = self._invoke

        def run() -> None:
            try:
                invoke(message["model"], message["version"], call, receive)
            except TidemillError as error:
                receive(error, True)

        try:
            self._threads.submit(run)
        except RuntimeError as error:
            self._leave()
            raise Unavailable(f"model '{self._model}' is being unloaded", reason="UNLOADED") from error

    def _leave(self) -> None:
        self._places.__exit__(None, None, None)

    def _call(self, session: Session, message: Message) -> Call:
        parent = session.call(message["trace"])
        flags = message["flags"]
        return Call(
            inputs={tensor[0]: session.shared.unpack(tensor, copy=True) for tensor in message["inputs"]},
            outputs=message["outputs"],
            id=message["request"],
            correlation=message["correlation"],
            starts=bool(flags & TRITONSERVER_REQUEST_FLAG_SEQUENCE_START),
            ends=bool(flags & TRITONSERVER_REQUEST_FLAG_SEQUENCE_END),
            patience=message["timeout"] / 1e6,
            expires=None if parent is None else parent.expires,
            alive=lambda: session not in self._gone,
            parameters=message["parameters"],
            trace=None if parent is None else parent.trace,
            arrived=time.monotonic_ns(),
        )


class _Answers:
    """Sends the replies to a request of a model back to it."""

    def __init__(self, session: Session, question: int, *, decoupled: bool, done: Callable[[], None]) -> None:
        self._session = session
        self._question = question
        self._decoupled = decoupled
        self._done = done
        self._kept: Answer | TidemillError | None = None
        self._count = 0

    def __call__(self, reply: Answer | TidemillError | None, final: bool) -> None:
        try:
            if self._decoupled:
                self._send(reply, final)
                return
            self._count += reply is not None
            self._kept = self._kept if reply is None else reply
            if final:
                self._send(self._one(), True)
        finally:
            if final:
                self._done()

    def _one(self) -> Answer | TidemillError:
        if self._count == 1 and self._kept is not None:
            return self._kept
        return Invalid(
            f"the model gave {self._count} responses, not one: call it with decoupled=True", reason="DECOUPLED"
        )

    def _send(self, reply: Answer | TidemillError | None, final: bool) -> None:
        try:
            self._session.answer(self._question, self._body(reply, final))
        except ChannelClosed:
            LOG.debug("an answer came too late for a model that is gone")

    def _body(self, reply: Answer | TidemillError | None, final: bool) -> Mapping[str, Any]:
        if reply is None:
            return {"empty": True, "final": final}
        if isinstance(reply, TidemillError):
            return {"error": to_fault(reply), "final": final}
        try:
            outputs = self._session.shared.pack(
                [(name, dtypes.of(array), (array,)) for name, array in reply.outputs.items()]
            )
        except Exhausted as error:
            return {"error": to_fault(error), "final": final}
        return {"outputs": outputs, "parameters": dict(reply.parameters), "final": final}
