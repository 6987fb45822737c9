"""Dynamic batching: calls that wait at the same time run together.

Threads that wake each other are what batching costs in Python. So a call that comes while an instance is free, and
completes a batch, runs that batch on its own thread: nobody is woken but those who get an answer. What waits when a run
ends is taken by a thread of the instance, which goes on from batch to batch while there are any: it does not sleep
between them, and the callers decode and encode while the model runs.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable

from tidemill.errors import Internal, Invalid, TidemillError, Unavailable
from tidemill.inference.calls import Answer, Call, Receive
from tidemill.inference.configuration import Configuration, DynamicBatching
from tidemill.inference.executor import Executor
from tidemill.inference.scheduling.base import Scheduler, Waiting
from tidemill.inference.scheduling.closing import Batch, Closing
from tidemill.inference.scheduling.forms import form
from tidemill.inference.scheduling.limits import Limits
from tidemill.inference.scheduling.outbox import Outbox, Reply
from tidemill.inference.scheduling.queue import BOUND, Entry, Queue
from tidemill.inference.turns import patience

LOG = logging.getLogger(__name__)


def choose(configuration: Configuration, executor: Executor, bound: int = BOUND) -> Scheduler | None:
    """A scheduler for a version with dynamic batching; None for others.

    Args:
        configuration: of the version.
        executor: runs its calls.
        bound: most calls that wait where its owner sets no limit.
    """
    if configuration.dynamic is None:
        return None
    return DynamicScheduler(
        configuration.dynamic,
        executor,
        largest=configuration.max_batch,
        instances=configuration.instances,
        bound=bound,
    )


class _Worker:
    """The thread of an instance."""

    __slots__ = ("signal", "thread", "wake")

    def __init__(self) -> None:
        self.signal = threading.Lock()
        self.signal.acquire()
        self.wake: int | None = None
        self.thread: threading.Thread | None = None


class DynamicScheduler(Scheduler):
    """Puts calls together.

    Args:
        dynamic: how.
        executor: runs the batches.
        largest: most rows of a batch; 0 for a model that takes none: each call runs alone, in its turn.
        instances: batches that run at a time; 0 = one.
        bound: most calls that wait in a queue without a limit of its own.
        clock: nanoseconds as `time.monotonic_ns()`.
    """

    def __init__(
        self,
        dynamic: DynamicBatching,
        executor: Executor,
        *,
        largest: int,
        instances: int = 0,
        bound: int = BOUND,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._executor = executor
        self._largest = largest
        self._instances = instances or 1
        self._clock = clock
        self._lock = threading.Lock()
        self._queue = Queue(dynamic, bound)
        self._closing = Closing(self._queue, dynamic, largest or 1)
        ordered = dynamic.preserve_order and not executor.decoupled
        self._outbox = Outbox(self._send) if ordered else None
        self._limits = Limits(self._enforce)
        self._running = 0
        self._parked: list[_Worker] = []
        self._closed = False
        self._workers = [_Worker() for _ in range(self._instances)]
        for worker in self._workers:
            worker.thread = threading.Thread(target=self._work, args=(worker,), name="batches", daemon=True)
            worker.thread.start()

    @property
    def queues(self) -> bool:
        """True for models that give one answer to a call."""
        return not self._executor.decoupled

    @property
    def pending(self) -> int:
        """Calls that wait."""
        return len(self._queue)

    def infer(self, call: Call) -> Answer:
        """The one answer to `call`; runs its batch on this thread when an instance is free.

        Raises:
            Invalid: its rows do not fit into a batch.
            Unavailable, Exhausted: too many wait.
            Unavailable: it waited for longer than its policy allows.
            DeadlineExceeded: nobody waits for it any more.
            TidemillError: it failed.
        """
        waiting = Waiting()
        entry, batch = self._enter(call, waiting, leads=not self._executor.decoupled)
        if batch is not None:
            self._lead(batch)
        if entry.limit is not None and not waiting.wait(patience(entry.limit / 1e9)):
            with self._lock:
                mine = self._queue.remove(entry)
            if mine:
                self._refuse((entry,))
        return waiting.answer()

    def submit(self, call: Call, receive: Receive) -> None:
        """Have `call` run; does not block."""
        try:
            entry, _ = self._enter(call, receive, leads=False)
        except TidemillError as error:
            receive(error, True)
            return
        if entry.limit is not None:
            self._limits.watch(entry.limit)

    def close(self) -> None:
        """Refuse what still waits, and end."""
        with self._lock:
            self._closed = True
            left = list(self._queue)
            for entry in left:
                self._queue.remove(entry)
            while self._parked:
                self._wake(self._parked[-1])
        self._answer(left, [self._executor.refused(entry.call, self._gone()) for entry in left])
        self._limits.close()
        for worker in self._workers:
            if worker.thread is not None:
                worker.thread.join()

    def _enter(self, call: Call, receive: Receive, leads: bool) -> tuple[Entry, Batch | None]:
        """Let a call wait; or the batch that the caller is to run, its own or one that was due first."""
        try:
            shape = form(call, self._largest, self._executor.model) if self._largest else None
        except Invalid as error:
            raise self._executor.refused(call, error) from None
        entry = Entry(call, receive, shape, self._queue.level(call.priority))
        batch = refused = None
        with self._lock:
            try:
                if self._closed:
                    raise self._gone()
                self._queue.add(entry)
            except TidemillError as error:
                refused = error
            else:
                if self._outbox is not None:
                    self._outbox.expect(entry)
                batch = self._take() if leads and self._worth_a_look() else None
                if batch is None:
                    self._arrange()
            gone = self._closing.take_gone()
        if gone:
            self._refuse(gone)
        if refused is not None:
            raise self._executor.refused(call, refused)
        return entry, batch

    def _take(self) -> Batch | None:
        """The batch that is due, for the one who asks to run it. The lock is held."""
        if self._running >= self._instances:
            return None
        batch = self._closing.next(self._clock())
        if batch is not None:
            self._running += 1
            if self._running < self._instances:
                self._arrange()
        return batch

    def _arrange(self) -> None:
        """Have a worker look, if an instance is free for what waits, and none looks in time. The lock is held."""
        if self._running >= self._instances or not self._queue or not self._parked or not self._worth_a_look():
            return
        if self._closing.due(self._clock()) or not self._watched(self._closing.wake):
            self._wake(self._parked[-1])

    def _worth_a_look(self) -> bool:
        """Whether a batch may be due: else somebody sleeps until one may be. The lock is held."""
        return self._queue.rows >= self._closing.least or not any(worker.wake for worker in self._parked)

    def _watched(self, wake: int | None) -> bool:
        """Whether somebody sleeps until then, or there is nothing to wait for. The lock is held."""
        return wake is None or any(worker.wake is not None and worker.wake <= wake for worker in self._parked)

    def _wake(self, worker: _Worker) -> None:
        self._parked.remove(worker)
        worker.signal.release()

    def _work(self, worker: _Worker) -> None:
        ran = 0
        while True:
            with self._lock:
                self._running -= ran
                batch = self._take()
                gone = self._closing.take_gone()
                if batch is None:
                    if self._closed:
                        return
                    wake = self._closing.wake if self._running < self._instances else None
                    worker.wake = None if self._watched(wake) else wake
                    self._parked.append(worker)
            if gone:
                self._refuse(gone)
            ran = 0
            if batch is not None:
                self._answer(batch.entries, self._run(batch))
                ran = 1
            elif not worker.signal.acquire(timeout=patience(None if worker.wake is None else worker.wake / 1e9)):
                self._unpark(worker)

    def _unpark(self, worker: _Worker) -> None:
        with self._lock:
            parked = worker in self._parked
            if parked:
                self._parked.remove(worker)
        if not parked:  # woken at the same moment
            worker.signal.acquire()

    def _lead(self, batch: Batch) -> None:
        """Run a batch on the thread of a caller, and leave what waits to a worker."""
        replies = self._run(batch)
        with self._lock:
            self._running -= 1
            self._arrange()
        self._answer(batch.entries, replies)

    def _run(self, batch: Batch) -> list[Reply]:
        """The replies; none for a model that gives them itself, by and by."""
        try:
            if self._executor.decoupled:
                for entry in batch.entries:
                    self._executor.stream(entry.call, entry.receive)
                return []
            return self._executor.run([entry.call for entry in batch.entries], batch.closed)
        except Exception:  # the thread serves others too: it must go on, and nobody may wait for ever
            LOG.exception("a batch could not be run", extra={"model": self._executor.model})
            return [Internal("the request could not be run; the server's log says why", reason="UNEXPECTED")] * len(
                batch.entries
            )

    def _answer(self, entries: Iterable[Entry], replies: list[Reply]) -> None:
        if not replies:
            return
        pairs = zip(entries, replies, strict=True)
        if self._outbox is not None:
            self._outbox.put(dict(pairs))
            return
        for entry, reply in pairs:
            self._send(entry, reply)

    def _refuse(self, entries: Iterable[Entry]) -> None:
        """Answer entries at once that are at their limit or without a caller; others need not wait for them."""
        if self._outbox is not None:
            self._outbox.forget(entries)
        for entry in entries:
            self._send(entry, self._executor.refused(entry.call, entry.refusal()))

    def _send(self, entry: Entry, reply: Reply) -> None:
        try:
            entry.receive(reply, True)
        except Exception:  # the next ones want their answers too
            LOG.exception("an answer could not be passed on", extra={"model": self._executor.model})

    def _enforce(self) -> int | None:
        """Refuse what is at its limit; the next limit."""
        with self._lock:
            over = self._queue.over(self._clock())
            following = min((entry.limit for entry in self._queue if entry.limit is not None), default=None)
        self._refuse(over)
        return following

    def _gone(self) -> TidemillError:
        return Unavailable(
            f"Request for unknown model: '{self._executor.model}' version {self._executor.version} is not at ready "
            "state",
            reason="VERSION_NOT_READY",
        )
