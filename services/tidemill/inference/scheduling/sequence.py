"""Sequence batching: requests with the same correlation id run one after the other, each with its sequence's state."""

import dataclasses
import logging
import math
import threading
from collections.abc import Sequence

from tidemill.errors import DeadlineExceeded, Internal, Invalid, TidemillError, Unavailable
from tidemill.inference.calls import Answer, Call, Receive
from tidemill.inference.configuration import Configuration
from tidemill.inference.executor import Executor
from tidemill.inference.runtimes.base import CallRuntime
from tidemill.inference.scheduling.base import Scheduler
from tidemill.inference.scheduling.sequence_controls import Controls
from tidemill.inference.scheduling.sequence_direct import DirectStrategy
from tidemill.inference.scheduling.sequence_oldest import OldestStrategy
from tidemill.inference.scheduling.sequence_queue import Batch, Instance, SequenceQueue, Waiting
from tidemill.inference.scheduling.sequence_states import States
from tidemill.inference.scheduling.sequence_table import SequenceTable, Strategy
from tidemill.inference.scheduling.timing import SystemTiming, Timing

LOG = logging.getLogger(__name__)

_STEP = 0.05
"""Seconds between two looks at all sequences at the least, however many of them end soon."""


def choose(configuration: Configuration, executor: Executor) -> Scheduler | None:
    """A scheduler for a version with sequence batching.

    Raises:
        Invalid: its implicit state begins with bytes that do not fit.
    """
    return None if configuration.sequence is None else SequenceScheduler(configuration, executor)


class SequenceScheduler(Scheduler):
    """Gives each sequence a place at one instance of the model, where its requests run in their order.

    Every instance has a thread that runs its batches; one more thread gives up sequences that are not heard of.

    Args:
        configuration: of the version, with sequence batching.
        executor: runs the calls.
        timing: tells the time.

    Raises:
        Invalid: the implicit state begins with bytes that do not fit.
    """

    def __init__(self, configuration: Configuration, executor: Executor, timing: Timing | None = None) -> None:
        sequence = configuration.sequence
        if sequence is None:
            raise ValueError("the model has no sequence batching")
        self._model = configuration.name
        self._executor = executor
        # Such a model finds its sequences by their ids. It keeps their state itself, so nothing may run twice.
        self._sees_calls = isinstance(executor.runtime, CallRuntime) and executor.runtime.sees_calls
        executor.repeats = not self._sees_calls
        self._timing = timing or SystemTiming()
        batched = configuration.max_batch > 0
        self._controls = Controls(sequence.controls, batched=batched)
        self._states = States(sequence.states, batched=batched)
        initial, rows = self._states.initial, configuration.max_batch
        strategy: Strategy
        if sequence.oldest is None:
            strategy = DirectStrategy(sequence, rows, self._controls, initial)
        else:
            strategy = OldestStrategy(sequence.oldest, sequence.candidates, rows, initial)
        self._lock = threading.Lock()
        self._table = SequenceTable(
            self._model, strategy, max(1, configuration.instances), sequence.idle, initial, self._lock
        )
        self._closed = False
        self._swept = threading.Condition(self._lock)
        self._due = math.inf
        instances = self._table.instances
        self._threads = [threading.Thread(target=self._serve, args=(one,), daemon=True) for one in instances]
        self._threads.append(threading.Thread(target=self._watch, daemon=True))
        for thread in self._threads:
            thread.start()

    def submit(self, call: Call, receive: Receive) -> None:
        """Have `call` run after those of its sequence that came before it. Does not block."""
        try:
            self._check(call)
            with self._lock:
                if self._closed:
                    raise _stopping()
                self._remind(self._table.admit(Waiting(call, receive, self._timing.now())))
        except TidemillError as error:
            receive(self._executor.refused(call, error), True)
        self._refuse()

    @property
    def pending(self) -> int:
        """Calls that wait, in places and in the backlog."""
        return self._table.waiting

    def close(self) -> None:
        """Refuse what still waits, and end when what runs has ended; no call comes any more."""
        with self._lock:
            self._closed = True
            self._table.refuse_all(_stopping())
            self._swept.notify_all()
            for instance in self._table.instances:
                instance.changed.notify_all()
        self._refuse()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    def _check(self, call: Call) -> None:
        self._controls.check(call.correlation, self._model)
        if call.rows != 1:
            raise Invalid(
                f"inference request to model '{self._model}' must specify batch-size 1 due to requirements of "
                "sequence batcher",
                reason="SEQUENCE_ROWS",
            )

    def _remind(self, due: float) -> None:
        """Have the sequences looked at by then. The lock is held."""
        due = max(due, self._timing.now() + _STEP)
        if due < self._due:
            self._due = due
            self._swept.notify()

    def _refuse(self) -> None:
        """Answer the calls that shall not run."""
        with self._lock:
            refusals, self._table.refusals = self._table.refusals, []
        for waiting, error in refusals:
            call = waiting.call
            told = self._executor.expired(call) if error is None else self._executor.refused(call, error)
            waiting.receive(told, True)

    def _watch(self) -> None:
        """Give up sequences when their time is over."""
        while True:
            with self._lock:
                if self._closed:
                    return
                now = self._timing.now()
                if now >= self._due:
                    self._due = max(self._table.sweep(now), now + _STEP)
                if not self._table.refusals:
                    self._timing.wait(self._swept, None if self._due == math.inf else self._due - now)
            self._refuse()

    def _serve(self, instance: Instance) -> None:
        """Run the batches of one instance."""
        while True:
            batch = None
            with self._lock:
                if self._closed:
                    return
                now = self._timing.now()
                found = self._table.pick(instance, now)
                if isinstance(found, Batch):
                    batch = found
                elif not self._table.refusals:
                    self._timing.wait(instance.changed, None if found is None else found - now)
            self._refuse()
            if batch is not None:
                self._run(instance, batch)

    def _run(self, instance: Instance, batch: Batch) -> None:
        entries = [(sequence, sequence.running) for sequence in batch.sequences if sequence.running]
        calls = [self._fed(sequence, waiting.call, instance) for sequence, waiting in entries]
        if self._executor.decoupled and self._sees_calls:
            for (sequence, waiting), call in zip(entries, calls, strict=True):
                self._executor.stream(call, _Streamed(self, sequence, waiting))
            return
        replies: Sequence[Answer | TidemillError]
        try:
            replies = self._executor.run(calls, batch.closed, None if self._sees_calls else batch.arrangement)
        except Exception:  # the thread serves other callers too, and these must be told
            LOG.exception("a batch of sequences failed", extra={"model": self._model})
            replies = [Internal("the model failed on these inputs", reason="EXECUTION_FAILED")] * len(calls)
        answers = [
            self._finished(sequence, waiting.call, reply)
            for (sequence, waiting), reply in zip(entries, replies, strict=True)
        ]
        self._finish(batch.sequences, replies)
        for (_, waiting), answer in zip(entries, answers, strict=True):
            waiting.receive(answer, True)

    def _fed(self, sequence: SequenceQueue, call: Call, instance: Instance) -> Call:
        """The call as the model gets it: with control inputs and state, and with the outputs that make the next one."""
        if call.starts:
            sequence.state = self._states.initial
        extra = [name for name in self._states.outputs if name not in call.outputs]
        return dataclasses.replace(
            call,
            inputs={**call.inputs, **self._controls.inputs(call), **sequence.state},
            outputs=[*call.outputs, *extra],
            instance=instance.index,
        )

    def _finished(self, sequence: SequenceQueue, call: Call, reply: Answer | TidemillError) -> Answer | TidemillError:
        """The reply as the caller gets it; the state is kept. Only while the sequence's request runs."""
        if not isinstance(reply, Answer) or not self._states.outputs:
            return reply
        sequence.state = self._states.after(sequence.state, reply.outputs)
        wanted = {name: reply.outputs[name] for name in call.outputs if name in reply.outputs}
        return Answer(outputs=wanted, parameters=reply.parameters)

    def _finish(self, sequences: Sequence[SequenceQueue], replies: Sequence[Answer | TidemillError | None]) -> None:
        with self._lock:
            now = self._timing.now()
            for sequence, reply in zip(sequences, replies, strict=True):
                self._remind(self._table.finish(sequence, ran=not _expired(reply), now=now))
        self._refuse()


class _Streamed:
    """Passes the answers of a call on that may have any number of them."""

    def __init__(self, scheduler: SequenceScheduler, sequence: SequenceQueue, waiting: Waiting) -> None:
        self._scheduler = scheduler
        self._sequence = sequence
        self._waiting = waiting

    def __call__(self, reply: Answer | TidemillError | None, final: bool) -> None:
        if reply is not None:
            reply = self._scheduler._finished(self._sequence, self._waiting.call, reply)
        self._waiting.receive(reply, final)
        if final:
            self._scheduler._finish([self._sequence], [reply])


def _expired(reply: object) -> bool:
    """Whether the executor did not run the call, as nobody waited for it any more."""
    return isinstance(reply, DeadlineExceeded) and reply.reason == "EXPIRED"


def _stopping() -> Unavailable:
    return Unavailable(
        "Server is stopping, scheduler for model has stopped accepting new inference requests", reason="MODEL_STOPPING"
    )
