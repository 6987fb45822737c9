"""Carries sums from each shard of a group to all of them, beside the pushes and pulls of the worker of rank 0."""

import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from tidemill import errors


class Mediation:
    """One step's sums after the other's, in a thread of its own. Safe for threads.

    Args:
        carry: carries the sums of a step, and returns when every shard has them; blocks until then.
        give_up: lets what waits for a step end with `Cancelled`; called when `carry` has failed.
    """

    def __init__(self, carry: Callable[[int], None], give_up: Callable[[], None]) -> None:
        self._carry = carry
        self._give_up = give_up
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._step = -1
        self._running: Future[None] | None = None

    def begin(self, step: int) -> None:
        """Carry the sums of a step, unless that is being done."""
        with self._lock:
            if self._step == step and self._running is not None and not self._running.done():
                return
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, thread_name_prefix="sums")
            self._step = step
            self._running = self._pool.submit(contextvars.copy_context().run, self._run, step)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around what waits for a step: ends with the error of carrying its sums, if that was the reason."""
        try:
            yield
        except errors.Cancelled:
            with self._lock:
                running = self._running
            failure = running.exception() if running is not None and running.done() else None
            if isinstance(failure, errors.TidemillError) and not isinstance(failure, errors.Cancelled):
                raise failure from None
            raise

    def close(self) -> None:
        """Return when nothing is carried any more; whatever `carry` waits for must have been ended."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown()

    def _run(self, step: int) -> None:
        try:
            self._carry(step)
        except errors.TidemillError:
            # Deferred: whoever is told finds this one's error.
            threading.Thread(target=self._tell, name="sums", daemon=True).start()
            raise

    def _tell(self) -> None:
        with self._lock:
            running = self._running
        if running is not None:
            running.exception()
        self._give_up()
