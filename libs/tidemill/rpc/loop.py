"""An asyncio loop in a thread of its own, for synchronous code that uses asynchronous clients."""

import asyncio
import concurrent.futures
import contextvars
import inspect
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

from tidemill.errors import FailedPrecondition

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for synchronous callers. gRPC wants one loop a process: share one of these."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """The result of `work`, run in the loop with the caller's context (trace and deadline).

        Whoever is interrupted while waiting (Ctrl-C) leaves nothing running: `work` is cancelled then.

        Raises:
            TimeoutError: `work` took longer than `timeout` seconds; it is cancelled then.
            FailedPrecondition: with reason CLOSED, after `close`.
            concurrent.futures.CancelledError: `close` came meanwhile.
        """
        result: concurrent.futures.Future[T] = concurrent.futures.Future()
        try:
            self._submit(work, result)
            return result.result(timeout)
        except (TimeoutError, KeyboardInterrupt):
            result.cancel()
            raise

    def _submit(self, work: Coroutine[Any, Any, T], result: "concurrent.futures.Future[T]") -> None:
        context = contextvars.copy_context()

        def start() -> None:
            task = self._loop.create_task(work, context=context)
            result.add_done_callback(lambda r: self._cancel(task) if r.cancelled() else None)
            task.add_done_callback(lambda t: _copy(t, result))

        with self._lock:
            if not self._closed:
                self._loop.call_soon_threadsafe(start)
                return
        work.close()
        raise FailedPrecondition("the connection is closed", reason="CLOSED")

    def _cancel(self, task: "asyncio.Task[Any]") -> None:
        with self._lock:
            if not self._closed:  # closing cancels everything by itself
                self._loop.call_soon_threadsafe(task.cancel)

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items of an asynchronous iterator, one by one; closing this closes that. Raises as `run`."""
        try:
            while True:
                try:
                    item = self.run(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            if inspect.isasyncgen(items) and not self._closed:  # closing the loop has closed its generators too
                self.run(items.aclose())

    def close(self) -> None:
        """Cancel what still runs and end the thread. Closing again changes nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ended = asyncio.run_coroutine_threadsafe(_end(), self._loop)
        ended.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


async def _end() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    loop = asyncio.get_running_loop()
    await loop.shutdown_asyncgens()
    await loop.shutdown_default_executor()


def _copy(task: "asyncio.Task[T]", result: "concurrent.futures.Future[T]") -> None:
    error = concurrent.futures.CancelledError() if task.cancelled() else task.exception()
    if not result.set_running_or_notify_cancel():  # nobody waits any more
        return
    if error is not None:
        result.set_exception(error)
    else:
        result.set_result(task.result())
