"""One operation on several shards at once: a thread each, repeated while a shard cannot be reached, ended together."""

import contextvars
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

from tidemill import errors
from tidemill.clients.backoff import Backoff
from tidemill.clients.patience import is_broken

T = TypeVar("T")
LONGEST_PAUSE = 0.5
"""Seconds between two attempts: a shard that is back should not stay idle, and there are not many who ask."""


class Calls:
    """The calls of one operation over all shards: when one shard fails for good, those to the others are cancelled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[Any, int] = {}
        self._dropped: set[int] = set()
        self._ended = threading.Event()

    @contextmanager
    def open(self, call: Any, shard: int = -1) -> Iterator[Any]:
        """`call`, a future of gRPC, cancelled when the operation ends before the block does.

        Args:
            call: the future.
            shard: to which it goes, for `drop`.
        """
        with self._lock:
            self._open[call] = shard
        if self._ended.is_set() or shard in self._dropped:
            call.cancel()
        try:
            yield call
        finally:
            with self._lock:
                self._open.pop(call, None)
            call.cancel()

    def drop(self, shard: int) -> None:
        """Cancel what goes to one shard."""
        with self._lock:
            self._dropped.add(shard)
            calls = [call for call, to in self._open.items() if to == shard]
        for call in calls:
            call.cancel()

    def end(self) -> None:
        """Cancel what is open, and let nobody pause any more."""
        self._ended.set()
        with self._lock:
            calls = list(self._open)
        for call in calls:
            call.cancel()

    def pause(self, seconds: float) -> bool:
        """Wait, unless the operation ends; whether it goes on."""
        return not self._ended.wait(seconds)


class Running(Generic[T]):
    """An operation that was started.

    Args:
        calls: of all shards.
        futures: the result of each shard.
    """

    def __init__(self, calls: Calls, futures: Sequence[Future[T]]) -> None:
        self._calls = calls
        self.futures = futures
        """The result of each shard, in order."""

    def result(self) -> list[T]:
        """Wait for the results; raises as `Fanout.run`."""
        return _results(self._calls, self.futures, ())

    def end(self) -> None:
        """Let it end as soon as it can, and wait for that."""
        self._calls.end()
        wait(self.futures)


class Fanout:
    """Runs operations over `shards` shards.

    Args:
        shards: number of shards.
        patience: seconds for which an operation is repeated on a shard that cannot be reached or is full.
        name: of the threads.
    """

    def __init__(self, shards: int, patience: float, name: str) -> None:
        self._shards = shards
        self._patience = patience
        self._changed = threading.Condition()
        self._running: dict[Calls, int] = {}
        self._closed = False
        self._pool = ThreadPoolExecutor(shards, thread_name_prefix=name)

    def run(
        self,
        operation: Callable[[int, Calls], T],
        shards: Sequence[int] | None = None,
        beside: Sequence[Future[Any]] = (),
    ) -> list[T]:
        """The result of `operation(shard, calls)` for each shard, in order; the first error ends the others.

        It runs in the caller's context (trace, deadline), and again after a passing fault: it must be safe to repeat.

        Args:
            operation: what is done on one shard.
            shards: which ones; None = all.
            beside: what must go well, too, and is waited for: an error of it ends the operation, and is raised.

        Raises:
            Cancelled: this was closed, before or meanwhile.
            TidemillError: what the operation raised on the first shard where it failed.
        """
        started = self.start(operation, shards)
        return _results(started._calls, started.futures, beside)

    def start(self, operation: Callable[[int, Calls], T], shards: Sequence[int] | None = None) -> Running[T]:
        """Begin as `run`, and do not wait: `Running.result` does. Raises Cancelled when this was closed before."""
        calls = Calls()
        futures: list[Future[T]] = []
        with self._changed:
            if self._closed:
                raise errors.Cancelled("the client is closed", reason="CLOSED")
            self._running[calls] = 1
        try:
            for shard in range(self._shards) if shards is None else shards:
                context = contextvars.copy_context()
                futures.append(self._pool.submit(context.run, self._repeat, operation, shard, calls))
                with self._changed:
                    self._running[calls] += 1
                futures[-1].add_done_callback(lambda _: self._less(calls))
        except BaseException:
            calls.end()
            raise
        finally:
            self._less(calls)
        return Running(calls, futures)

    def drop(self, shard: int) -> None:
        """Cancel the calls to one shard that run now."""
        with self._changed:
            for calls in self._running:
                calls.drop(shard)

    def end(self) -> None:
        """Let what runs now end with `Cancelled`."""
        with self._changed:
            for calls in self._running:
                calls.end()

    def close(self) -> None:
        """Let what runs end with `Cancelled`, and take nothing more; returns when it has ended."""
        with self._changed:
            self._closed = True
            for calls in self._running:
                calls.end()
            self._changed.wait_for(lambda: not self._running)
        self._pool.shutdown()

    def _less(self, calls: Calls) -> None:
        """One of those who are at work with these calls has ended."""
        with self._changed:
            self._running[calls] -= 1
            if not self._running[calls]:
                del self._running[calls]
                self._changed.notify_all()

    def _repeat(self, operation: Callable[[int, Calls], T], shard: int, calls: Calls) -> T:
        backoff = Backoff(limit=LONGEST_PAUSE)
        trouble: float | None = None
        while True:
            started = time.monotonic()
            try:
                return operation(shard, calls)
            except errors.TidemillError as error:
                now = time.monotonic()
                if trouble is None or now - started > self._patience:
                    # A call that has lasted that long was fine until now.
                    trouble = now
                    backoff.reset()
                pause = max(error.retry_after or 0.0, backoff.next())
                late = now + pause > trouble + self._patience
                if late or not passing(error) or not calls.pause(pause):
                    raise


def _results(calls: Calls, futures: Sequence[Future[T]], beside: Sequence[Future[Any]]) -> list[T]:
    try:
        done, _ = wait([*futures, *beside], return_when=FIRST_EXCEPTION)
        failed = [one for one in (*beside, *futures) if one in done and one.exception() is not None]
    finally:
        calls.end()
        wait(futures)
    return [future.result() for future in failed or futures]


def passing(error: errors.TidemillError) -> bool:
    """Whether the same call may succeed soon, when it is safe to repeat."""
    if isinstance(error, errors.Exhausted):
        return error.retry_after is not None
    return is_broken(error) or error.reason == "SUPERSEDED"
