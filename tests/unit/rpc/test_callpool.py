"""The threads of a server: how many calls run at a time, and which of them count."""

import random
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from tidemill.rpc.callpool import CallPool
from tidemill.yielding import about_to_wait

EVER = 3600.0
LIMIT = 30.0


class Census:
    """Counts who is inside."""

    def __init__(self) -> None:
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._now -= 1


@pytest.fixture
def pools() -> Iterator[Any]:
    made: list[CallPool] = []

    def make(threads: int, running: int, patience: float = EVER, calls: int = 10_000) -> CallPool:
        made.append(CallPool(threads, calls, running, patience))
        return made[-1]

    yield make
    for pool in made:
        pool.shutdown()


@pytest.mark.parametrize(("running", "most"), [(1, 1), (2, 2), (0, 8)])
def test_so_many_run_at_a_time(pools: Any, running: int, most: int) -> None:
    pool, census = pools(8, running), Census()
    together = threading.Barrier(most)

    def call() -> None:
        with census:
            together.wait(LIMIT)

    for future in [pool.submit(call) for _ in range(8 * most)]:
        future.result(LIMIT)
    assert census.most == most


def test_who_waits_does_not_count(pools: Any) -> None:
    pool, free = pools(8, 1), threading.Event()

    def waits() -> bool:
        about_to_wait()
        about_to_wait()
        return free.wait(LIMIT)

    waiting = [pool.submit(waits) for _ in range(5)]
    pool.submit(free.set).result(LIMIT)
    assert [future.result(LIMIT) for future in waiting] == [True] * 5


def test_who_has_waited_counts_no_more_than_before(pools: Any) -> None:
    """Whatever calls do, in the end there are as many places as in the beginning."""
    pool, census = pools(8, 2, patience=0.001), Census()

    def call(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(rng.randrange(3)):
            about_to_wait()
            if rng.random() < 0.1:
                threading.Event().wait(0.002)
        if rng.random() < 0.1:
            raise ValueError(seed)

    def caller(first: int) -> None:
        for future in [pool.submit(call, first + i) for i in range(300)]:
            future.exception(LIMIT)

    callers = [threading.Thread(target=caller, args=(1000 * i,)) for i in range(4)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join()
    pool._watch.close()
    together = threading.Barrier(2)

    def counted() -> None:
        with census:
            together.wait(LIMIT)

    for future in [pool.submit(counted) for _ in range(20)]:
        future.result(LIMIT)
    assert census.most == 2


def test_a_long_call_does_not_keep_others_out(pools: Any) -> None:
    pool, free = pools(4, 1, patience=0.01), threading.Event()
    long = pool.submit(free.wait, LIMIT)
    assert pool.submit(lambda: "short").result(LIMIT) == "short"
    free.set()
    assert long.result(LIMIT)


def test_there_are_no_more_threads_than_said(pools: Any) -> None:
    pool, free, census = pools(3, 1), threading.Event(), Census()

    def waits() -> bool:
        with census:
            about_to_wait()
            return free.wait(LIMIT)

    waiting = [pool.submit(waits) for _ in range(9)]
    while census.most < 3:
        threading.Event().wait(0.001)
    free.set()
    assert all(future.result(LIMIT) for future in waiting)
    assert census.most == 3


@pytest.mark.parametrize("running", [0, 1])
def test_it_knows_when_it_is_full(pools: Any, running: int) -> None:
    pool, free = pools(4, running, calls=3), threading.Event()
    waiting = [pool.submit(free.wait, LIMIT) for _ in range(2)]
    assert not pool.full
    waiting.append(pool.submit(free.wait, LIMIT))
    assert pool.full
    free.set()
    for future in waiting:
        future.result(LIMIT)
    assert not pool.full


@pytest.mark.parametrize("running", [0, 1])
def test_errors_and_results_are_the_futures(pools: Any, running: int) -> None:
    pool = pools(2, running)
    assert pool.submit(divmod, 7, 2).result(LIMIT) == (3, 1)
    assert pool.submit(int, "12", base=3).result(LIMIT) == 5
    with pytest.raises(ZeroDivisionError):
        pool.submit(divmod, 7, 0).result(LIMIT)
    assert pool.submit(lambda: 1).result(LIMIT) == 1


@pytest.mark.parametrize("running", [0, 1])
def test_the_end(pools: Any, running: int) -> None:
    pool, begun, free = pools(1 if running == 0 else 4, running), threading.Event(), threading.Event()

    def works() -> bool:
        begun.set()
        return free.wait(LIMIT)

    working: Future[bool] = pool.submit(works)
    assert begun.wait(LIMIT)
    waiting = [pool.submit(lambda: None) for _ in range(3)]
    pool.shutdown(wait=False, cancel_futures=True)
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(LIMIT)
    free.set()
    assert working.result(LIMIT)
    with pytest.raises(RuntimeError):
        pool.submit(lambda: None)


def test_a_cancelled_call_does_not_run(pools: Any) -> None:
    pool, free = pools(2, 1), threading.Event()
    ran: list[int] = []
    first = pool.submit(free.wait, LIMIT)
    second = pool.submit(ran.append, 1)
    assert second.cancel()
    free.set()
    assert first.result(LIMIT)
    pool.submit(lambda: None).result(LIMIT)
    assert ran == []
