"""The threads of a server: many calls may be in work, few of them compute at a time."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from tidemill.yielding import on_wait

P = ParamSpec("P")
T = TypeVar("T")
PATIENCE = 0.02
"""Seconds after which a call counts as one that waits, when others wait for its place."""


class CallPool(ThreadPoolExecutor):
    """Threads for calls, which knows how many calls there are.

    Many threads that want the interpreter at once slow each other down: each passes the lock on after every step that
    leaves Python, and its caches with it. So only `running` calls begin; the next one begins when one of them has
    ended, says that it will wait (`tidemill.yielding`), or has run for `patience` while others want its place: a long
    call does not keep short ones out.

    Args:
        threads: calls in work at a time.
        calls: calls in work and waiting together.
        running: calls that run at a time, those that wait for something not among them; 0 = as many as threads.
        patience: seconds.
    """

    def __init__(self, threads: int, calls: int, running: int = 0, patience: float = PATIENCE) -> None:
        super().__init__(threads, thread_name_prefix="grpc")
        self._calls = calls
        self._here = 0
        self._lock = threading.Lock()
        self._bounded = 0 < running < threads
        self._places = running if self._bounded else threads
        self._queue: deque[Job] = deque()
        self._turns: set[_Turn] = set()
        self._watch = _Watch(self, patience)
        self._ended = False

    @property
    def full(self) -> bool:
        """Whether there are as many calls as there may be."""
        return self._here >= self._calls

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run a call, now or when there is a place for it."""
        if self._bounded:
            future: Future[T] = Future()
            self._put(Job(future, fn, args, kwargs))
        else:
            future = super().submit(fn, *args, **kwargs)
        self.come()
        future.add_done_callback(self.left)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end the threads when those in work have ended."""
        with self._lock:
            self._ended = True
            left = list(self._queue) if cancel_futures else []
            if cancel_futures:
                self._queue.clear()
        for job in left:
            job.future.cancel()
        self._watch.close()
        super().shutdown(wait, cancel_futures=cancel_futures)

    def relieve(self, since: float) -> bool:
        """Let calls that have run since then, by `time.monotonic()`, count no more; whether any call still waits."""
        with self._lock:
            late = [turn for turn in self._turns if turn.placed and turn.since < since] if self._queue else []
        for turn in late:
            turn.give_up()
        with self._lock:
            return bool(self._queue)

    def come(self) -> None:
        """Count a call, whoever runs it."""
        with self._lock:
            self._here += 1

    def left(self, _: object = None) -> None:
        """A call has ended that was counted."""
        with self._lock:
            self._here -= 1

    def put(self, run: Callable[..., Any], *arguments: Any) -> None:
        """Run something on a thread, as a part of a call that is counted already. Raises RuntimeError at the end."""
        self._put(Job(Future(), run, arguments, {}))

    def _put(self, job: "Job") -> None:
        """Have it run. Raises RuntimeError when the pool is closed."""
        with self._lock:
            if self._ended:
                raise RuntimeError("the pool is closed")
            self._queue.append(job)
            begin = self._places > 0
            if begin:
                self._places -= 1
        if begin:
            super().submit(self._work)
        else:
            self._watch.wake()

    def _work(self) -> None:
        """Run calls on this thread for as long as there are some and a place for them."""
        turn = _Turn(self)
        on_wait(turn.give_up)
        with self._lock:
            self._turns.add(turn)
        try:
            while (job := self._next(turn)) is not None:
                job.run()
                del job  # a thread that waits holds nothing of its last call
        finally:
            on_wait(None)
            with self._lock:
                self._turns.discard(turn)

    def _next(self, turn: "_Turn") -> "Job | None":
        with self._lock:
            if not turn.placed:  # given up: somebody else may be in its place
                if not self._queue or not self._places:
                    return None
                self._places -= 1
                turn.placed = True
            elif not self._queue:
                self._places += 1
                turn.placed = False
                return None
            turn.since = time.monotonic()
            return self._queue.popleft()

    def give_up(self, turn: "_Turn") -> None:
        """Let another call run in the place of this one."""
        with self._lock:
            if not turn.placed:
                return
            turn.placed = False
            begin = bool(self._queue) and not self._ended
            if not begin:
                self._places += 1
        if begin:
            super().submit(self._work)


class _Turn:
    """One thread at work; `placed` says whether it counts."""

    __slots__ = ("_pool", "placed", "since")

    def __init__(self, pool: CallPool) -> None:
        self._pool = pool
        self.placed = True
        self.since = time.monotonic()

    def give_up(self) -> None:
        if self.placed:
            self._pool.give_up(self)


class Job:
    """A call that waits for its thread."""

    __slots__ = ("_arguments", "_keywords", "_run", "future")

    def __init__(
        self, future: "Future[Any]", run: Callable[..., Any], arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        self.future = future
        self._run = run
        self._arguments = arguments
        self._keywords = keywords

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            result = self._run(*self._arguments, **self._keywords)
        except BaseException as error:  # noqa: BLE001 it is the future's, as with every executor
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class _Watch:
    """Looks after calls that take long, while others wait. Its thread exists from the first such moment on."""

    def __init__(self, pool: CallPool, patience: float) -> None:
        self._pool = pool
        self._patience = patience
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._needed = False
        self._ended = False

    def wake(self) -> None:
        """Somebody waits."""
        if self._needed:
            return
        with self._changed:
            self._needed = True
            if self._thread is None and not self._ended:
                self._thread = threading.Thread(target=self._look, name="grpc-patience", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _look(self) -> None:
        while True:
            with self._changed:
                while not self._needed and not self._ended:
                    self._changed.wait()
                if self._ended:
                    return
                self._changed.wait(self._patience / 2)
                # Before the look: whoever comes after it is the next one's business.
                self._needed = False
            if self._pool.relieve(time.monotonic() - self._patience):
                with self._changed:
                    self._needed = True
