"""One operation over many shards."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from tidemill import errors
from tidemill.clients.fanout import Calls, Fanout, passing


def failing(times: int, error: errors.TidemillError) -> Callable[[int, Calls], int]:
    """An operation that fails so often on the second shard."""
    left = [times]

    def operation(shard: int, calls: Calls) -> int:
        if shard == 1 and left[0] > 0:
            left[0] -= 1
            raise error
        return shard * 10

    return operation


def test_results_come_in_the_order_of_shards_and_in_the_context_of_the_caller() -> None:
    word: ContextVar[str] = ContextVar("word")
    word.set("here")
    fanout = Fanout(3, 1, "test")
    assert fanout.run(lambda shard, _: (shard, word.get())) == [(0, "here"), (1, "here"), (2, "here")]
    fanout.close()


def test_passing_faults_are_tried_again_and_others_not() -> None:
    fanout = Fanout(2, 30, "test")
    assert fanout.run(failing(3, errors.Unavailable("away"))) == [0, 10]
    assert fanout.run(failing(1, errors.Exhausted("full", retry_after=0.01))) == [0, 10]
    for final in (errors.NotFound("gone"), errors.Exhausted("full"), errors.Invalid("wrong")):
        with pytest.raises(type(final)):
            fanout.run(failing(1, final))
    fanout.close()


def test_patience_ends() -> None:
    fanout = Fanout(2, 0.1, "test")
    with pytest.raises(errors.Unavailable):
        fanout.run(failing(10**6, errors.Unavailable("away")))
    fanout.close()


def test_the_first_failure_ends_the_others() -> None:
    fanout = Fanout(2, 60, "test")
    waiting = threading.Event()

    def operation(shard: int, calls: Calls) -> None:
        if shard == 0:
            waiting.set()
            raise errors.Unavailable("away")  # it would be tried again for a minute
        assert waiting.wait(30)
        raise errors.NotFound("gone")

    with pytest.raises(errors.NotFound):
        fanout.run(operation)
    fanout.close()


def test_closing_ends_what_runs() -> None:
    fanout = Fanout(1, 60, "test")
    begun = threading.Event()

    class Call:
        """Waits until it is cancelled."""

        def __init__(self) -> None:
            self.cancelled = threading.Event()

        def cancel(self) -> None:
            self.cancelled.set()

    def operation(shard: int, calls: Calls) -> None:
        with calls.open(Call()) as call:
            begun.set()
            assert call.cancelled.wait(30)
            raise errors.Cancelled("cancelled")

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(fanout.run, operation)
        assert begun.wait(30)
        fanout.close()
        with pytest.raises(errors.Cancelled):
            running.result(30)
    with pytest.raises(errors.Cancelled):
        fanout.run(operation)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.Unavailable("x"), True),
        (errors.Cancelled("x", reason="STREAM_BROKEN"), True),
        (errors.Stale("x", reason="SUPERSEDED"), True),
        (errors.Stale("x", reason="STALE_ATTEMPT"), False),
        (errors.Internal("x"), True),
        (errors.Internal("x", reason="ROUND_FAILED"), False),
        (errors.DeadlineExceeded("x"), False),
        (errors.OutOfRange("x"), False),
    ],
)
def test_which_faults_pass(error: errors.TidemillError, expected: bool) -> None:
    assert passing(error) == expected
