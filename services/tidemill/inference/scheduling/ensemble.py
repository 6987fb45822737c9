"""Ensembles: models that are made of others, whose requests run through a graph of them."""

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from opentelemetry import context as otel
from opentelemetry import trace
from opentelemetry.context import Context

from tidemill.errors import DeadlineExceeded, Invalid, TidemillError, Unavailable
from tidemill.inference.calls import Answer, Array, Call, Receive
from tidemill.inference.configuration import Configuration
from tidemill.inference.engine import Engine
from tidemill.inference.inputs import check_shape, rows_of
from tidemill.inference.loaded import Loaded
from tidemill.inference.metrics import Series
from tidemill.inference.repository import Repository
from tidemill.inference.runs import RunSpans
from tidemill.inference.scheduling.base import Scheduler
from tidemill.inference.scheduling.dataflow import Dataflow, Plan
from tidemill.inference.statistics import Statistics, Times


class Ensembles:
    """Makes the schedulers of ensembles, and has the threads on which steps run beside each other.

    Args:
        repository: of the models.
        engine: runs the steps.
        tracer: makes the spans.
        threads: most steps that run beside the one that the caller's own thread runs, of all requests together.
    """

    def __init__(self, repository: Repository, engine: Engine, tracer: trace.Tracer, threads: int) -> None:
        self.repository = repository
        self.engine = engine
        self._tracer = tracer
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ensemble")
        self._free = threading.Semaphore(threads)

    def compose(
        self, configuration: Configuration, version: str, statistics: Statistics, series: Series
    ) -> "EnsembleScheduler":
        """What runs the requests for an ensemble.

        Raises:
            Invalid: it cannot work: its graph is wrong, or a model that it is made of does not fit.
            Unavailable: a model that it is made of is not READY.
        """
        books = _Books(statistics, series, RunSpans(self._tracer, configuration.name, version))
        scheduler = EnsembleScheduler(self, configuration, books)
        try:
            scheduler.check()
        except Invalid:
            raise
        except TidemillError as error:
            raise Unavailable(
                f"ensemble '{configuration.name}' contains models that are not available: {error.message}",
                reason="STEP_UNAVAILABLE",
            ) from error
        return scheduler

    def help(self, run: "_Run", steps: int) -> None:
        """Let other threads run up to so many steps of `run`, as far as some are free."""
        for _ in range(steps):
            if not self._free.acquire(blocking=False):
                return
            try:
                self._pool.submit(self._help, run)
            except RuntimeError:  # closed: the caller's thread runs them
                self._free.release()
                return

    def close(self) -> None:
        """End the threads, after the steps that they run."""
        self._pool.shutdown()

    def _help(self, run: "_Run") -> None:
        try:
            run.work()
        finally:
            self._free.release()


@dataclass(frozen=True, slots=True)
class _Books:
    """Statistics, metrics and spans of one ensemble."""

    statistics: Statistics
    series: Series
    spans: RunSpans

    def failed(self, call: Call) -> None:
        self.statistics.failed(time.monotonic_ns() - call.arrived)
        self.series.failure()

    def succeeded(self, call: Call) -> None:
        now = time.monotonic_ns()
        took = now - call.started
        queued = call.started - call.arrived
        self.statistics.executed(call.rows, (queued,), Times(infer=took), (now - call.arrived,))
        self.series.success(1, took)


class EnsembleScheduler(Scheduler):
    """Runs each request through the steps that its outputs need; steps that wait for nothing run beside each other.

    Made by `Ensembles.compose`.
    """

    depends = True

    def __init__(self, ensembles: Ensembles, configuration: Configuration, books: _Books) -> None:
        self._ensembles = ensembles
        self._name = configuration.name
        self._flow = Dataflow(configuration)
        self._books = books
        self._checked: tuple[Loaded, ...] = ()
        self._asked = threading.local()

    @property
    def available(self) -> bool:
        """Whether every model that the ensemble is made of is READY, and fits. Raises nothing."""
        if getattr(self._asked, "now", False):
            return False  # it is made of itself
        self._asked.now = True
        try:
            self.check()
        except TidemillError:
            return False
        finally:
            self._asked.now = False
        return True

    def check(self) -> None:
        """Return when all models are READY and fit.

        Raises:
            Invalid: one does not fit, or is in the end made of this ensemble.
            NotFound, Unavailable: one is not READY.
        """
        find = self._ensembles.repository.serving
        self._fit(tuple(find(step.model, step.version) for step in self._flow.steps))

    def submit(self, call: Call, receive: Receive) -> None:
        """Run `call` now."""
        reply: Answer | TidemillError
        try:
            reply = self.infer(call)
        except TidemillError as error:
            reply = error
        receive(reply, True)

    def infer(self, call: Call) -> Answer:
        """The answer to `call`.

        Raises:
            TidemillError: a step failed, with its error; a model is not READY any more; or nobody waits any more.
        """
        call.started = time.monotonic_ns()
        try:
            with self._books.spans.of((call,), ""), ExitStack() as used:
                plan = self._flow.plan(frozenset(call.outputs))
                run = _Run(self._ensembles, self._flow, plan, call, self._acquire(plan, used))
                outputs = run.outputs()
        except TidemillError:
            self._books.failed(call)
            raise
        self._books.succeeded(call)
        return Answer(outputs=outputs)

    def _acquire(self, plan: Plan, used: ExitStack) -> dict[int, Loaded]:
        """The model of each step to run, in use until `used` is closed. Raises TidemillError."""
        acquire = self._ensembles.repository.acquire
        steps = self._flow.steps
        found = {i: used.enter_context(acquire(steps[i].model, steps[i].version)) for i in plan.outputs}
        if any(self._checked[i] is not loaded for i, loaded in found.items()):
            self.check()
        return found

    def _fit(self, models: tuple[Loaded, ...]) -> None:
        """Return when these models can be the steps. Raises Invalid."""
        if models == self._checked:
            return
        waiting = list(models)
        while waiting:
            for step in waiting.pop().configuration.steps:
                if step.model == self._name:
                    raise Invalid(f"ensemble '{self._name}' is made of itself", reason="ENSEMBLE_REFUSED")
                waiting.append(self._ensembles.repository.serving(step.model, step.version))
        self._flow.check([model.configuration for model in models])
        self._checked = models


class _Run:
    """One request on its way through the graph. `work` may be called from several threads.

    Args:
        models: of the steps to run, by index; in use.
    """

    def __init__(
        self, ensembles: Ensembles, flow: Dataflow, plan: Plan, call: Call, models: Mapping[int, Loaded]
    ) -> None:
        self._ensembles = ensembles
        self._steps = flow.steps
        self._plan = plan
        self._call = call
        self._models = models
        self._trace: Context | None = otel.get_current() if call.trace is not None else None
        self._changed = threading.Condition()
        self._tensors: dict[str, Array] = {name: call.inputs[name] for name in plan.uses if name in call.inputs}
        self._uses = dict(plan.uses)
        self._waits = dict(plan.waits)
        self._ready = deque(index for index, count in plan.waits.items() if count == 0)
        self._running = 0
        self._error: BaseException | None = None

    def outputs(self) -> dict[str, Array]:
        """Run everything; the outputs that the call asks for. Raises TidemillError."""
        while True:
            self.work()
            with self._changed:
                while self._running and not self._ready:
                    self._changed.wait()
                if not self._running and not self._ready:
                    break
        if self._error is not None:
            raise self._error
        return {name: self._tensors[name] for name in self._call.outputs if name in self._tensors}

    def work(self) -> None:
        """Run steps until none is ready."""
        while True:
            with self._changed:
                if not self._ready:
                    return
                index = self._ready.popleft()
                self._running += 1
                more = len(self._ready)
            if more:
                self._ensembles.help(self, more)
            try:
                self._done(index, self._run(index))
            except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
                with self._changed:
                    self._error = self._error or error
                    self._ready.clear()
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()

    def _run(self, index: int) -> Mapping[str, Array]:
        """The answer of one step. Raises TidemillError."""
        call, step, loaded = self._call, self._steps[index], self._models[index]
        if not call.wanted:
            raise DeadlineExceeded("the request's time was over before the model ran", reason="EXPIRED")
        with self._changed:
            inputs = {name: self._tensors[tensor] for name, tensor in step.inputs.items() if tensor in self._tensors}
        for name, array in inputs.items():
            check_shape(array.shape, loaded.signature.input[name], step.model)
        inner = Call(
            inputs=inputs,
            outputs=self._plan.outputs[index],
            rows=rows_of(inputs, loaded.configuration.max_batch, step.model),
            id=call.id,
            correlation=call.correlation,
            starts=call.starts,
            ends=call.ends,
            priority=call.priority,
            patience=call.patience,
            expires=call.expires,
            alive=self._alive,
            parameters=call.parameters,
            trace=self._trace,
        )
        return self._ensembles.engine.infer(loaded, inner, inner=True).outputs

    def _alive(self) -> bool:
        return self._error is None and self._call.alive()

    def _done(self, index: int, found: Mapping[str, Array]) -> None:
        """Keep what a step gave as long as it is needed, and see which steps can run now."""
        step = self._steps[index]
        with self._changed:
            for name, array in found.items():
                self._tensors[step.outputs[name]] = _as_bytes(array)
            for tensor in set(step.inputs.values()):
                self._uses[tensor] -= 1
                if not self._uses[tensor]:
                    self._tensors.pop(tensor, None)
            if self._error is None:
                self._release([step.outputs[name] for name in self._plan.outputs[index]])

    def _release(self, tensors: Sequence[str]) -> None:
        for tensor in tensors:
            for reader in self._plan.readers.get(tensor, ()):
                self._waits[reader] -= 1
                if not self._waits[reader]:
                    self._ready.append(reader)


def _as_bytes(array: Array) -> Array:
    """Strings as a model takes them: some runtimes give text."""
    if array.dtype != object or not any(isinstance(element, str) for element in array.flat):
        return array
    found = [element.encode() if isinstance(element, str) else element for element in array.flat]
    made = np.empty(len(found), object)
    made[:] = found
    return made.reshape(array.shape)
