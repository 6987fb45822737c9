"""Runs calls on one version, alone or together, and keeps its books: statistics, metrics, spans."""

import logging
import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
from opentelemetry import trace

from tidemill.errors import DeadlineExceeded, Internal, Invalid, TidemillError
from tidemill.inference.arrangement import Arrangement
from tidemill.inference.calls import Answer, Array, Call, Receive
from tidemill.inference.metrics import Series
from tidemill.inference.runs import RunSpans
from tidemill.inference.runtimes.base import CallRuntime, Runtime
from tidemill.inference.statistics import Statistics, Times
from tidemill.inference.turns import Turns

LOG = logging.getLogger(__name__)
BRIEF = 10_000_000
"""Nanoseconds up to which a run is brief: others may wait for so long."""
FORGETS = 0.05
"""How much a run counts that was quicker than those before it; a slower one counts at once."""


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
        self.repeats = True
        """Whether a batch that failed may run again in parts: not where the model remembers what it was given."""
        self.model = model
        self.version = version
        self._series = series
        self._spans = RunSpans(tracer, model, version)
        self._turns = Turns(instances)
        self._plain = not isinstance(runtime, CallRuntime)
        self._in_place = self._plain and not instances and all(device.startswith("CPU") for device in runtime.devices)
        self._pace = math.inf

    @property
    def brief(self) -> bool:
        """Whether a call would run here and at once, and the slowest of the last ones took a moment."""
        return self._pace < BRIEF and self._in_place

    def run_one(self, call: Call) -> Answer:
        """Run `call` now, on this thread, as soon as an instance is free.

        Raises:
            TidemillError: it failed, or nobody waits for it any more.
        """
        if not self._turns.take(call.expires):
            raise self.expired(call)
        try:
            if self._plain and call.trace is None:
                return self._at_once(call)
            reply = self._single(call)
        finally:
            self._turns.give()
        if isinstance(reply, TidemillError):
            raise reply
        return reply

    def run(
        self, calls: Sequence[Call], closed: str = "", arrangement: Arrangement | None = None
    ) -> list[Answer | TidemillError]:
        """Run calls as one batch; the reply to each, in their order.

        The inputs of all have the same names, types, and dimensions behind the first. When a batch fails, its halves
        run for themselves, and so on, so that a call that the model does not like fails alone. Only when the model
        cannot be had now (`Unavailable`), all fail at once: they may try again.

        Args:
            calls: at least one.
            closed: why the batch was closed: "full", "preferred", "delay", "idle"; "" where nothing was waited for.
            arrangement: of the batch; None = the rows of one call follow those of the one before.
        """
        limits = [call.expires for call in calls]
        until = None if None in limits else max(limit for limit in limits if limit is not None)
        if not self._turns.take(until):
            return [self.expired(call) for call in calls]
        try:
            return self._wanted(calls, closed, arrangement)
        finally:
            self._turns.give()

    def stream(self, call: Call, receive: Receive) -> None:
        """Run a call that may have any number of answers; returns when the model has taken it."""
        reply: Answer | TidemillError
        if not isinstance(self.runtime, CallRuntime):
            try:
                reply = self.run_one(call)
            except TidemillError as error:
                reply = error
            receive(reply, True)
            return
        if not call.wanted:
            receive(self.expired(call), True)
            return
        call.started = time.monotonic_ns()
        self.runtime.stream(call, _Counted(self, call, receive))

    def refused(self, call: Call, error: TidemillError) -> TidemillError:
        """The error, booked as the outcome of a call that does not run."""
        self.statistics.failed(time.monotonic_ns() - call.arrived)
        self._series.failure()
        return error

    def expired(self, call: Call) -> TidemillError:
        """What a call is answered for which nobody waits any more; booked."""
        return self.refused(
            call, DeadlineExceeded("the request's time was over before the model ran", reason="EXPIRED")
        )

    def failed(self, call: Call, error: TidemillError) -> TidemillError:
        """The error for the caller, booked: a runtime's own words about a fault of ours go to the log alone."""
        self.refused(call, error)
        if not isinstance(error, Internal) or error.reason != "EXECUTION_FAILED":
            return error
        LOG.warning(
            "execution failed",
            extra={"model": self.model, "version": self.version, "error": str(error.__cause__ or error)[:1000]},
        )
        told = Internal(
            f"model '{self.model}' version {self.version} failed on these inputs; the server's log says why",
            reason="EXECUTION_FAILED",
        )
        told.__cause__ = error
        return told

    def succeeded(self, calls: Sequence[Call], times: Times, closed: str = "") -> None:
        """Book one run that answered these calls."""
        now = time.monotonic_ns()
        rows = sum(call.rows for call in calls)
        queues = [call.started - call.arrived for call in calls]
        self.statistics.executed(rows, queues, times, [now - call.arrived for call in calls])
        self._series.success(len(calls), times.infer)
        if closed:
            self._series.batch(rows, closed, queues)

    def _wanted(
        self, calls: Sequence[Call], closed: str, arrangement: Arrangement | None = None
    ) -> list[Answer | TidemillError]:
        """Run those calls that somebody waits for."""
        gone = [not call.wanted for call in calls]
        if not any(gone):
            return self._run(calls, closed, arrangement)
        left = [call for call, away in zip(calls, gone, strict=True) if not away]
        replies = iter(self._run(left, closed, arrangement) if left else ())
        return [self.expired(call) if away else next(replies) for call, away in zip(calls, gone, strict=True)]

    def _at_once(self, call: Call) -> Answer:
        """What `_single` does for a call that is not recorded, with as little around the model as possible.

        Raises:
            TidemillError: it failed, or nobody waits for it any more.
        """
        if not call.wanted:
            raise self.expired(call)
        started = call.started = time.monotonic_ns()
        try:
            found = self.runtime.run(call.inputs, call.outputs)
        except TidemillError as error:
            raise self.failed(call, error) from error
        except Exception as error:  # a model's fault is its callers' answer, and the log's
            raise self.failed(call, _fault(error)) from error
        ended = time.monotonic_ns()
        took = ended - started
        pace = self._pace
        self._pace = took if took > pace or pace == math.inf else pace - (pace - took) * FORGETS
        self.statistics.answered(call.rows, started - call.arrived, took, ended - call.arrived)
        self._series.success(1, took)
        return Answer(outputs=dict(zip(call.outputs, found, strict=True)))

    def _single(self, call: Call) -> Answer | TidemillError:
        if not call.wanted:
            return self.expired(call)
        (reply,) = self._run((call,), "")
        return reply

    def _run(
        self, calls: Sequence[Call], closed: str, arrangement: Arrangement | None = None
    ) -> list[Answer | TidemillError]:
        started = time.monotonic_ns()
        for call in calls:
            call.started = started
        replies: Sequence[Answer | TidemillError]
        try:
            with self._spans.of(calls, closed):
                if arrangement is None and isinstance(self.runtime, CallRuntime):
                    replies, times = self._execute(self.runtime, calls)
                else:
                    replies, times = self._infer(calls, arrangement)
        except TidemillError as error:
            replies, times = [error] * len(calls), Times()
        if len(calls) > 1 and _as_a_whole(replies) and self.repeats:
            LOG.info("a batch failed: its halves run", extra={"model": self.model, "version": self.version})
            middle = len(calls) // 2
            halves = (calls[:middle], calls[middle:])
            return [reply for half in halves for reply in self._wanted(half, closed, arrangement)]
        good = [call for call, reply in zip(calls, replies, strict=True) if isinstance(reply, Answer)]
        if good:
            self.succeeded(good, times, closed)
        return [
            self.failed(call, reply) if isinstance(reply, TidemillError) else reply
            for call, reply in zip(calls, replies, strict=True)
        ]

    def _infer(self, calls: Sequence[Call], arrangement: Arrangement | None) -> tuple[list[Answer], Times]:
        """Run a model that knows nothing but tensors. Raises TidemillError."""
        begun = time.monotonic_ns()
        first = calls[0]
        alone = len(calls) == 1
        try:
            names = first.outputs if alone else tuple(dict.fromkeys(name for call in calls for name in call.outputs))
            merged = arrangement.merge(calls) if arrangement is not None else first.inputs if alone else _merged(calls)
            together = time.monotonic_ns()
            found = self.runtime.run(merged, names)
            inferred = time.monotonic_ns()
            if arrangement is not None:
                answers = arrangement.split(calls, dict(zip(names, found, strict=True)))
            elif alone:
                answers = [Answer(outputs=dict(zip(names, found, strict=True)))]
            else:
                answers = _split(calls, dict(zip(names, found, strict=True)))
        except TidemillError:
            raise
        except Exception as error:  # a model's fault is its callers' answer, and the log's
            raise _fault(error) from error
        return answers, Times(together - begun, inferred - together, time.monotonic_ns() - inferred)

    def _execute(self, runtime: CallRuntime, calls: Sequence[Call]) -> tuple[Sequence[Answer | TidemillError], Times]:
        """Run a model that takes calls as they came. Raises TidemillError."""
        begun = time.monotonic_ns()
        try:
            replies, times = runtime.execute(calls)
        except TidemillError:
            raise
        except Exception as error:  # the same
            raise _fault(error) from error
        if len(replies) != len(calls):
            raise _fault(Invalid(f"{len(replies)} replies to {len(calls)} calls"))
        return replies, times or Times(infer=time.monotonic_ns() - begun)


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
        kind = "empty" if reply is None else "fail" if isinstance(reply, TidemillError) else "success"
        if isinstance(reply, TidemillError) and not self._failed:
            self._failed = True
            reply = executor.failed(call, reply)
        executor.statistics.responded(self._index, took, 0, kind)
        self._index += 1
        if final and not self._failed:
            executor.succeeded((call,), Times(infer=took))
        self._receive(reply, final)


def _as_a_whole(replies: Sequence[Answer | TidemillError]) -> bool:
    """Whether a batch failed so that nobody knows on whose account."""
    errors = {(type(reply), reply.message) for reply in replies if isinstance(reply, Internal | Invalid)}
    return len(errors) == 1 and all(isinstance(reply, TidemillError) for reply in replies)


def _fault(cause: Exception) -> Internal:
    fault = Internal("the model failed on these inputs", reason="EXECUTION_FAILED")
    fault.__cause__ = cause
    return fault


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
            raise _fault(Invalid(f"output {name!r} has shape {array.shape} for a batch of {rows}"))
    answers, start = [], 0
    for call in calls:
        end = start + call.rows
        answers.append(Answer(outputs={name: found[name][start:end] for name in call.outputs}))
        start = end
    return answers
