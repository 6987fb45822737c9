"""Critical sections over named things, which run to their end once they have begun."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

from tidemill import errors
from tidemill.artifacts import timing

T = TypeVar("T")


class Sections:
    """Lets one piece of work at a time do something about each name.

    A caller that is cancelled while it waits for its turn does nothing. One that is cancelled later leaves its work
    running, names still held: a deletion that a thread is about to do must not meet somebody who thinks it is over.
    """

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, names: Iterable[str], work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, done while all `names` are held.

        Raises:
            Unavailable: with reason BUSY, when the caller's deadline comes first; `work` goes on if it had begun.
        """
        try:
            async with asyncio.timeout(timing.limit()):
                async with AsyncExitStack() as stack:
                    for name in sorted(set(names)):  # all in one order: no two wait for each other
                        await stack.enter_async_context(self._held(name))
                    held = stack.pop_all()
                task = asyncio.create_task(self._finish(held, work))
                self._running.add(task)
                task.add_done_callback(self._ended)
                return await asyncio.shield(task)
        except TimeoutError as error:
            raise errors.Unavailable("the time was over before this was done", reason="BUSY") from error

    async def _finish(self, held: AsyncExitStack, work: Callable[[], Awaitable[T]]) -> T:
        async with held:
            return await work()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever still waits gets it from the shield

    @asynccontextmanager
    async def _held(self, name: str) -> AsyncIterator[None]:
        lock, users = self._locks.get(name, (asyncio.Lock(), 0))
        self._locks[name] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[name]
            if users == 1:
                del self._locks[name]
            else:
                self._locks[name] = (lock, users - 1)

    async def drain(self) -> None:
        """Wait until everything that has begun is over."""
        while self._running:
            await asyncio.wait(self._running)
