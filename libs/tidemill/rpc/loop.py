"""An asyncio loop in a thread of its own, for synchronous code that uses asynchronous clients."""

import asyncio
import concurrent.futures
import contextvars
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for synchronous callers. gRPC wants one loop a process: share one of these."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="loop", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """The result of `work`, run in the loop with the caller's context (trace and deadline).

        Raises:
            TimeoutError: `work` took longer than `timeout` seconds; it is cancelled then.
        """
        return self._settle(self._submit(work), timeout)

    def _submit(self, work: Coroutine[Any, Any, T]) -> "concurrent.futures.Future[T]":
        result: concurrent.futures.Future[T] = concurrent.futures.Future()
        context = contextvars.copy_context()

        def start() -> None:
            task = self._loop.create_task(work, context=context)
            result.add_done_callback(lambda r: self._loop.call_soon_threadsafe(task.cancel) if r.cancelled() else None)
            task.add_done_callback(lambda t: _copy(t, result))

        self._loop.call_soon_threadsafe(start)
        return result

    def _settle(self, result: "concurrent.futures.Future[T]", timeout: float | None) -> T:
        try:
            return result.result(timeout)
        except (TimeoutError, KeyboardInterrupt):
            result.cancel()
            raise

    def iterate(self, items: AsyncIterator[T]) -> Iterator[T]:
        """The items of an asynchronous iterator, one by one; closing this closes that."""
        try:
            while True:
                try:
                    yield self.run(_next(items))
                except StopAsyncIteration:
                    return
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                self.run(close())

    def close(self) -> None:
        """Cancel what still runs and end the thread."""
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _copy(task: "asyncio.Task[T]", result: "concurrent.futures.Future[T]") -> None:
    if result.cancelled() or not result.set_running_or_notify_cancel():
        return
    if task.cancelled():
        result.set_exception(concurrent.futures.CancelledError())
    elif (error := task.exception()) is not None:
        result.set_exception(error)
    else:
        result.set_result(task.result())
