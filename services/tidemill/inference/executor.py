"""Runs calls on one version, alone or together, and keeps its books: statistics, metrics, spans."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
from opentelemetry import trace

from tidemill.errors import DeadlineExceeded, Internal, Invalid, TidemillError
from tidemill.inference.calls import Answer, Array, Call, Receive
from tidemill.inference.metrics import Series
from tidemill.inference.runtimes.base import CallRuntime, Runtime
from tidemill.inference.statistics import Statistics, Times
from tidemill.telemetry import attributes

LOG = logging.getLogger(__name__)


class Arrangement(Protocol):
    """Where the rows of calls lie in a batch."""

    def merge(self, calls: Sequence[Call]) -> Mapping[str, Array]:
        """The inputs of all calls as those of one run."""

    def split(self, calls: Sequence[Call], found: Mapping[str, Array]) -> list[Answer]:
        """The answer to each call, out of the outputs of the run.

        Raises:
            Internal: the model gave another number of rows than it got.
        """


class Executor:
    """Runs calls on one version. Safe to use from any thread.

    Args:
        runtime: the loaded model.
        model, version: its name and number, for logs and spans.
        statistics: its books.
        series: its metrics.
        tracer: makes spans for calls that are recorded.
        instances: runs at a time; 0 = as many as come.
        decoupled: whether one call may have any number of answers.
    """

    def __init__(
        self,
        runtime: Runtime,
        model: str,
        version: str,
        statistics: Statistics,
        series: Series,
        tracer: trace.Tracer,
        *,
        instances: int = 0,
        decoupled: bool = False,
    ) -> None:
        self.runtime = runtime
        self.statistics = statistics
        self.decoupled = decoupled
        self.instances = instances
        self._model = model
        self._version = version
        self._series = series
        self._tracer = tracer
        self._turn: AbstractContextManager[object] = threading.Semaphore(instances) if instances else nullcontext()

    def run_one(self, call: Call) -> Answer:
        """Run `call` now, on this thread, as soon as an instance is free.

        Raises:
            TidemillError: it failed, or nobody waits for it any more.
        """
        with self._turn:
            if not call.wanted:
                raise self._expired(call)
            return self._alone(call)

    def run(
        self, calls: Sequence[Call], closed: str = "", arrangement: Arrangement | None = None
    ) -> list[Answer | TidemillError]:
        """Run calls as one batch; the reply to each, in their order.

        The inputs of all have the same names, types, and dimensions behind the first. When the batch fails, each call
        runs alone, so that one that the model does not like fails alone.

        Args:
            calls: at least one.
            closed: why the batch was closed: "full", "preferred", "delay", "idle"; "" where nothing was waited for.
            arrangement: of the batch; None = the rows of one call follow those of the other.
        """
        replies: dict[int, Answer | TidemillError] = {}
        with self._turn:
            started = time.monotonic_ns()
            for call in calls:
                call.started = started
                if not call.wanted:
                    replies[id(call)] = self._expired(call)
            left = [call for call in calls if id(call) not in replies]
            if left:
                replies |= zip(map(id, left), self._run(left, closed, arrangement), strict=True)
        return [replies[id(call)] for call in calls]

    def stream(self, call: Call, receive: Receive) -> None:
        """Run a call that may have any number of answers; returns when the model has taken it."""
        if not isinstance(self.runtime, CallRuntime):
            receive(_reply(self.run_one, call), True)
            return
        call.started = time.monotonic_ns()
        self.runtime.stream(call, _Counted(self, call, receive))

    def _alone(self, call: Call) -> Answer:
        if isinstance(self.runtime, CallRuntime):
            (reply,) = self._run_calls(self.runtime, (call,), "")
            if isinstance(reply, TidemillError):
                raise reply
            return reply
        started = call.started = time.monotonic_ns()
        try:
            with self._span(call.trace, (call,), ""):
                found = self.runtime.run(call.inputs, call.outputs)
        except TidemillError as error:
            raise self._failed(call, error) from error
        ended = time.monotonic_ns()
        self._succeeded(call.rows, (started - call.arrived,), Times(infer=ended - started), (ended - call.arrived,))
        return Answer(outputs=dict(zip(call.outputs, found, strict=True)))

    def refused(self, call: Call, error: TidemillError) -> TidemillError:
        """`error`, which is the reply to a call that shall not run, after it is booked."""
        self.statistics.failed(time.monotonic_ns() - call.arrived)
        self._series.failure()
        return error

    def _run(
        self, calls: Sequence[Call], closed: str, arrangement: Arrangement | None = None
    ) -> list[Answer | TidemillError]:
        if isinstance(self.runtime, CallRuntime):
            return self._run_calls(self.runtime, calls, closed)
        if len(calls) == 1 and not closed and arrangement is None:
            return [_reply(self._alone, calls[0])]
        first = calls[0]
        begun = time.monotonic_ns()
        names = tuple(dict.fromkeys(name for call in calls for name in call.outputs))
        try:
            with self._span(next((call.trace for call in calls if call.trace), None), calls, closed):
                if arrangement is not None:
                    merged = arrangement.merge(calls)
                else:
                    merged = first.inputs if len(calls) == 1 else _merged(calls)
                together = time.monotonic_ns()
                found = self.runtime.run(merged, names)
                inferred = time.monotonic_ns()
                split = arrangement.split if arrangement is not None else _split
                answers = split(calls, dict(zip(names, found, strict=True)))
        except TidemillError as error:
            if len(calls) == 1:
                return [self._failed(first, error)]
            LOG.info("a batch failed: its calls run alone", extra={"model": self._model, "version": self._version})
            if arrangement is not None:
                return [reply for call in calls for reply in self._run((call,), "", arrangement)]
            return [_reply(self._alone, call) for call in calls]
        ended = time.monotonic_ns()
        times = Times(together - begun, inferred - together, ended - inferred)
        self._book(calls, times, closed)
        return list(answers)

    def _run_calls(self, runtime: CallRuntime, calls: Sequence[Call], closed: str) -> list[Answer | TidemillError]:
        with self._span(next((call.trace for call in calls if call.trace), None), calls, closed):
            begun = time.monotonic_ns()
            replies, times = runtime.execute(calls)
        times = times or Times(infer=time.monotonic_ns() - begun)
        good = [call for call, reply in zip(calls, replies, strict=True) if isinstance(reply, Answer)]
        if good:
            self._book(good, times, closed)
        return [
            reply if isinstance(reply, Answer) else self._failed(call, reply)
            for call, reply in zip(calls, replies, strict=True)
        ]

    def _book(self, calls: Sequence[Call], times: Times, closed: str) -> None:
        now = time.monotonic_ns()
        rows = sum(call.rows for call in calls)
        self._succeeded(
            rows, [call.started - call.arrived for call in calls], times, [now - call.arrived for call in calls]
        )
        if closed:
            self._series.batch(rows, closed, [call.started - call.arrived for call in calls])

    def _succeeded(self, rows: int, queues: Sequence[int], times: Times, totals: Sequence[int]) -> None:
        self.statistics.executed(rows, queues, times, totals)
        self._series.success(len(totals), times.infer)

    def _failed(self, call: Call, error: TidemillError) -> TidemillError:
        """The error for the caller: a runtime's own words about a fault of ours go to the log alone."""
        self.statistics.failed(time.monotonic_ns() - call.arrived)
        self._series.failure()
        if not isinstance(error, Internal) or error.reason != "EXECUTION_FAILED":
            return error
        LOG.warning(
            "execution failed",
            extra={"model": self._model, "version": self._version, "error": str(error.__cause__ or error)[:1000]},
        )
        told = Internal(
            f"model '{self._model}' version {self._version} failed on these inputs; the server's log says why",
            reason="EXECUTION_FAILED",
        )
        told.__cause__ = error
        return told

    def _expired(self, call: Call) -> TidemillError:
        return self.refused(call, expired())

    def _span(self, context: object, calls: Sequence[Call], closed: str) -> AbstractContextManager[object]:
        """The span of a run, if one of its calls is recorded: for others it would cost time for nothing."""
        if context is None:
            return nullcontext()
        found: dict[str, str | int | float] = {attributes.MODEL: self._model, attributes.MODEL_VERSION: self._version}
        if closed:
            waited = max(call.started - call.arrived for call in calls)
            found |= {
                attributes.BATCH_SIZE: sum(call.rows for call in calls),
                attributes.BATCH_REQUESTS: len(calls),
                attributes.BATCH_CLOSED: closed,
                attributes.QUEUE_SECONDS: waited / 1e9,
            }
        others = [trace.get_current_span(call.trace).get_span_context() for call in calls if call.trace is not None]
        return self._tracer.start_as_current_span(
            attributes.SPAN_EXECUTE,
            context=context,  # type: ignore[arg-type]
            attributes=found,
            links=[trace.Link(other) for other in others[1:]],
            record_exception=False,
        )


class _Counted:
    """Passes the answers of a decoupled call on, and books them."""

    def __init__(self, executor: Executor, call: Call, receive: Receive) -> None:
        self._executor = executor
        self._call = call
        self._receive = receive
        self._index = 0
        self._failed = False

    def __call__(self, reply: Answer | TidemillError | None, final: bool) -> None:
        call, executor = self._call, self._executor
        took = time.monotonic_ns() - call.started
        if isinstance(reply, TidemillError):
            self._failed = True
            reply = executor._failed(call, reply)
        kind = "empty" if reply is None else "fail" if isinstance(reply, TidemillError) else "success"
        executor.statistics.responded(self._index, took, 0, kind)
        self._index += 1
        if final and not self._failed:
            total = time.monotonic_ns() - call.arrived
            executor._succeeded(call.rows, (call.started - call.arrived,), Times(infer=took), (total,))
        self._receive(reply, final)


def expired() -> DeadlineExceeded:
    """The reply to a call that nobody waits for any more, so that it does not run."""
    return DeadlineExceeded("the request's time was over before the model ran", reason="EXPIRED")


def _reply(run: Callable[[Call], Answer], call: Call) -> Answer | TidemillError:
    try:
        return run(call)
    except TidemillError as error:
        return error


def _merged(calls: Sequence[Call]) -> Mapping[str, Array]:
    return {name: np.concatenate([call.inputs[name] for call in calls]) for name in calls[0].inputs}


def _split(calls: Sequence[Call], found: Mapping[str, Array]) -> list[Answer]:
    """Each caller's rows.

    Raises:
        Internal: the model gave another number of rows than it got.
    """
    rows = sum(call.rows for call in calls)
    for name, array in found.items():
        if array.ndim == 0 or len(array) != rows:
            cause = Invalid(f"output {name!r} has shape {array.shape} for a batch of {rows}")
            raise Internal("the model failed on these inputs", reason="EXECUTION_FAILED") from cause
    answers, start = [], 0
    for call in calls:
        end = start + call.rows
        answers.append(Answer(outputs={name: found[name][start:end] for name in call.outputs}))
        start = end
    return answers
