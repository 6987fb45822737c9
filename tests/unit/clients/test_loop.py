"""An asyncio loop in a thread serves synchronous code: results, context, interruptions and the end."""

import asyncio
import concurrent.futures
import contextvars
import gc
import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator

import pytest

from tidemill.errors import FailedPrecondition, NotFound
from tidemill.rpc.loop import LoopThread

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO", default="nobody")


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    made = LoopThread()
    yield made
    made.close()


class Forever:
    """Work that ends only by being cancelled."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    async def __call__(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise


def test_results_and_errors_come_back(loop: LoopThread) -> None:
    async def work() -> str:
        return threading.current_thread().name

    async def wrong() -> None:
        raise NotFound("gone")

    assert loop.run(work()) == "loop"
    with pytest.raises(NotFound, match="gone"):
        loop.run(wrong())


def test_work_sees_the_context_of_its_caller(loop: LoopThread) -> None:
    async def who() -> str:
        return WHO.get()

    async def each() -> AsyncIterator[str]:
        while True:
            yield WHO.get()

    token = WHO.set("me")
    items = loop.iterate(each())
    assert [loop.run(who()), next(items)] == ["me", "me"]
    WHO.reset(token)
    assert [loop.run(who()), next(items)] == ["nobody", "nobody"]
    items.close()  # type: ignore[attr-defined]


def test_a_timeout_cancels_the_work(loop: LoopThread) -> None:
    work = Forever()
    with pytest.raises(TimeoutError):
        loop.run(work(), timeout=0.01)
    assert work.cancelled.wait(20)


def test_a_timeout_of_the_work_itself_is_its_error(loop: LoopThread) -> None:
    async def work() -> None:
        raise TimeoutError("own")

    with pytest.raises(TimeoutError, match="own"):
        loop.run(work())


def test_an_error_after_the_caller_has_gone_is_nobodys(loop: LoopThread, caplog: pytest.LogCaptureFixture) -> None:
    ended = threading.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            asyncio.get_running_loop().call_soon(ended.set)
            raise NotFound("too late") from None

    with pytest.raises(TimeoutError):
        loop.run(stubborn(), timeout=0.01)
    assert ended.wait(20)
    gc.collect()
    assert caplog.records == []


def test_ctrl_c_reaches_the_caller_and_cancels_the_work(loop: LoopThread) -> None:
    work = Forever()

    async def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await work()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run(interrupted())
    finally:
        signal.signal(signal.SIGINT, before)
    assert work.cancelled.wait(20)


class Counter:
    """An asynchronous generator that knows whether it was closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()

    async def __call__(self, stop: int) -> AsyncIterator[int]:
        try:
            for number in range(stop):
                yield number
        finally:
            self.closed.set()


def test_items_come_one_by_one(loop: LoopThread) -> None:
    count = Counter()
    assert list(loop.iterate(count(3))) == [0, 1, 2]
    assert count.closed.is_set()


def test_leaving_an_iteration_closes_its_source(loop: LoopThread) -> None:
    count = Counter()
    items = loop.iterate(count(1000))
    for number in items:
        if number == 2:
            break
    assert not count.closed.is_set()
    items.close()  # type: ignore[attr-defined]
    assert count.closed.is_set()


def test_an_error_ends_an_iteration(loop: LoopThread) -> None:
    async def some() -> AsyncIterator[int]:
        yield 1
        raise NotFound("gone")

    items = loop.iterate(some())
    assert next(items) == 1
    with pytest.raises(NotFound):
        next(items)
    assert list(items) == []


def test_closing_cancels_what_still_runs_and_frees_who_waits_for_it() -> None:
    loop, work = LoopThread(), Forever()
    with concurrent.futures.ThreadPoolExecutor(1) as other:
        waiting = other.submit(loop.run, work())
        assert work.begun.wait(20)
        loop.close()
        assert isinstance(waiting.exception(20), concurrent.futures.CancelledError)
    assert work.cancelled.is_set()
    assert "loop" not in {thread.name for thread in threading.enumerate()}


def test_after_closing_nothing_runs_and_closing_again_is_fine() -> None:
    loop, count = LoopThread(), Counter()
    items = loop.iterate(count(10))
    assert next(items) == 0
    loop.close()
    loop.close()
    assert count.closed.is_set()
    with pytest.raises(FailedPrecondition, match="closed") as error:
        loop.run(Forever()())
    assert error.value.reason == "CLOSED"
    with pytest.raises(FailedPrecondition, match="closed"):
        next(items)


def test_several_threads_share_a_loop(loop: LoopThread) -> None:
    async def double(number: int) -> int:
        await asyncio.sleep(0)
        return number * 2

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda n: loop.run(double(n)), range(200))) == [n * 2 for n in range(200)]
