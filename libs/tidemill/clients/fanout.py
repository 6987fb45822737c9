"""One operation on several shards at once: a thread each, repeated while a shard cannot be reached, ended together."""

import contextvars
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, TypeVar

from tidemill import errors

T = TypeVar("T")
SHORTEST_PAUSE = 0.05
LONGEST_PAUSE = 2.0


class Calls:
    """The calls of one operation over all shards: when one shard fails for good, those to the others are cancelled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: set[Any] = set()
        self._ended = threading.Event()

    @contextmanager
    def open(self, call: Any) -> Iterator[Any]:
        """`call`, a future of gRPC, cancelled when the operation ends before the block does."""
        with self._lock:
            self._open.add(call)
        if self._ended.is_set():
            call.cancel()
        try:
            yield call
        finally:
            with self._lock:
                self._open.discard(call)
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
        self._pool = ThreadPoolExecutor(shards, thread_name_prefix=name)

    def run(self, operation: Callable[[int, Calls], T]) -> list[T]:
        """The result of `operation(shard, calls)` for each shard, in order; the first error ends the others.

        It runs in the caller's context (trace, deadline), and again after a passing fault: it must be safe to repeat.
        """
        calls = Calls()
        futures: list[Future[T]] = []
        try:
            for shard in range(self._shards):
                context = contextvars.copy_context()
                futures.append(self._pool.submit(context.run, self._repeat, operation, shard, calls))
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failed = [future for future in futures if future in done and future.exception() is not None]
        finally:
            calls.end()
            wait(futures)
        return [future.result() for future in failed or futures]

    def close(self) -> None:
        """End the threads once they are idle."""
        self._pool.shutdown(wait=False)

    def _repeat(self, operation: Callable[[int, Calls], T], shard: int, calls: Calls) -> T:
        pause = SHORTEST_PAUSE
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
                wanted = max(error.retry_after or 0, pause * random.uniform(0.5, 1))
                if not passing(error) or now + wanted > trouble + self._patience or not calls.pause(wanted):
                    raise
                pause = min(pause * 2, LONGEST_PAUSE)


def passing(error: errors.TidemillError) -> bool:
    """Whether the same call may succeed soon, when it is safe to repeat."""
    if isinstance(error, errors.Exhausted):
        return error.retry_after is not None
    return isinstance(error, errors.Unavailable) or error.reason in ("STREAM_BROKEN", "SUPERSEDED")
