"""When batches are closed, with which calls, and why: by a clock that the test moves."""

from typing import Any

import pytest

from tests.support.batching import call
from tidemill.errors import Exhausted, Unavailable
from tidemill.inference.configuration import DynamicBatching, QueuePolicy, TimeoutAction
from tidemill.inference.scheduling.closing import Closing
from tidemill.inference.scheduling.forms import form
from tidemill.inference.scheduling.queue import Entry, Queue

MS = 1_000_000


class Bench:
    """A queue and what closes its batches."""

    def __init__(self, largest: int = 8, bound: int = 100, **dynamic: Any) -> None:
        self.now = 0
        batching = DynamicBatching(**dynamic)
        self.queue = Queue(batching, bound)
        self.closing = Closing(self.queue, batching, largest)
        self._largest = largest

    def add(self, *rows: int, **more: Any) -> Entry:
        """A call comes now."""
        came = call(*rows, arrived=self.now, **more)
        entry = Entry(came, lambda *_: None, form(came, self._largest, "m"), self.queue.level(came.priority))
        self.queue.add(entry)
        return entry

    def next(self) -> tuple[list[int], str] | None:
        """First rows of the calls of the next batch, and why it was closed."""
        batch = self.closing.next(self.now)
        if batch is None:
            return None
        return [int(entry.call.inputs["x"][0, 0]) for entry in batch.entries], batch.closed


def test_what_waits_goes_at_once_where_nothing_is_waited_for() -> None:
    bench = Bench()
    bench.add(1)
    bench.add(2, 3)
    assert bench.next() == ([1, 2], "idle")
    assert bench.next() is None
    assert len(bench.queue) == bench.queue.rows == 0


def test_batch_is_full() -> None:
    bench = Bench(delay=1)
    for number in range(9):
        bench.add(number)
    assert bench.next() == ([0, 1, 2, 3, 4, 5, 6, 7], "full")
    assert bench.next() is None


def test_call_that_does_not_fit_waits_and_none_overtakes_it() -> None:
    bench = Bench(largest=4, delay=1)
    bench.add(1, 1, 1)
    bench.add(2, 2)
    bench.add(3)
    assert bench.next() == ([1], "full")
    bench.now += 1000 * MS
    assert bench.next() == ([2, 3], "delay")


def test_delay_is_that_of_the_oldest() -> None:
    bench = Bench(delay=0.005)
    bench.add(1)
    bench.now = 4 * MS
    bench.add(2)
    assert bench.next() is None
    assert bench.closing.wake == 5 * MS
    bench.now = 5 * MS
    assert bench.next() == ([1, 2], "delay")


def test_preferred_size_closes_before_the_delay() -> None:
    bench = Bench(preferred=(2, 4), delay=1)
    bench.add(1)
    assert bench.next() is None
    bench.add(2)
    assert bench.next() == ([1, 2], "preferred")
    for number in range(5):
        bench.add(number)
    assert bench.next() == ([0, 1, 2, 3], "preferred")


def test_preferred_size_that_rows_step_over_is_none() -> None:
    bench = Bench(preferred=(2,), delay=1)
    bench.add(1)
    bench.add(2, 2)
    assert bench.next() is None
    bench.now += 1000 * MS
    assert bench.next() == ([1, 2], "delay")


def test_largest_size_is_full_also_when_preferred() -> None:
    bench = Bench(largest=2, preferred=(2,))
    bench.add(1)
    bench.add(2)
    assert bench.next() == ([1, 2], "full")


def test_forms_do_not_mix_and_the_oldest_leads() -> None:
    bench = Bench()
    bench.add(1, width=3)
    bench.add(2, width=4)
    bench.add(3, width=3)
    bench.add(4, width=4)
    assert bench.next() == ([1, 3], "idle")
    bench.add(5, width=3)
    assert bench.next() == ([2, 4], "idle")
    assert bench.next() == ([5], "idle")


def test_form_that_is_due_does_not_wait_for_an_older_one() -> None:
    bench = Bench(largest=2, delay=1)
    bench.add(1, width=3)
    bench.add(2, width=4)
    bench.add(3, width=4)
    assert bench.next() == ([2, 3], "full")
    assert bench.next() is None
    assert bench.closing.wake == 1000 * MS


def test_urgent_calls_go_first_and_others_fill_the_batch() -> None:
    bench = Bench(largest=4, levels=3, default_level=2)
    for number, priority in enumerate((3, 0, 1, 1, 9, 3)):
        bench.add(number, priority=priority)
    assert bench.next() == ([2, 3, 1, 4], "full")
    assert bench.next() == ([0, 5], "idle")


def test_calls_at_their_limit_do_not_run() -> None:
    bench = Bench(policy=QueuePolicy(timeout=0.005))
    late = bench.add(1)
    bench.now = 4 * MS
    bench.add(2)
    bench.now = 6 * MS
    assert bench.next() == ([2], "idle")
    assert bench.closing.take_gone() == [late]
    assert isinstance(late.refusal(), Unavailable)
    assert late.refusal().message == "Request timeout expired"


def test_calls_without_caller_do_not_run() -> None:
    bench = Bench(largest=2, delay=1)
    gone = bench.add(1, alive=lambda: False)
    bench.add(2)
    assert bench.next() is None
    assert bench.closing.take_gone() == [gone]
    bench.add(3)
    assert bench.next() == ([2, 3], "full")


def test_delayed_calls_run_when_no_other_is_left() -> None:
    bench = Bench(largest=2, policy=QueuePolicy(action=TimeoutAction.DELAY, timeout=0.005))
    for number in (1, 2, 3):
        bench.add(number)
    bench.now = 6 * MS
    bench.add(4)
    assert bench.next() == ([4, 1], "full")
    assert bench.next() == ([2, 3], "full")


def test_levels_have_their_own_policies() -> None:
    bench = Bench(levels=2, default_level=2, policy=QueuePolicy(size=1), policies={1: QueuePolicy(size=2)})
    bench.add(1, priority=1)
    bench.add(2, priority=1)
    bench.add(3)
    for priority in (1, 2):
        with pytest.raises(Unavailable, match="Exceeds maximum queue size") as full:
            bench.add(4, priority=priority)
        assert full.value.retry_after
    assert bench.next() == ([1, 2, 3], "idle")
    bench.add(4)


def test_servers_own_bound_is_another_error() -> None:
    bench = Bench(bound=1)
    bench.add(1)
    with pytest.raises(Exhausted, match="Exceeds maximum queue size") as full:
        bench.add(2)
    assert full.value.retry_after


@pytest.mark.parametrize(
    ("policy", "patience", "limit"),
    [
        (QueuePolicy(), 0.005, None),
        (QueuePolicy(timeout=0.01), 0.005, 10 * MS),
        (QueuePolicy(timeout=0.01, allow_override=True), 0, 10 * MS),
        (QueuePolicy(timeout=0.01, allow_override=True), 0.005, 5 * MS),
        (QueuePolicy(timeout=0.01, allow_override=True), 0.5, 10 * MS),
        (QueuePolicy(allow_override=True), 0.005, 5 * MS),
    ],
    ids=["none", "not allowed", "not asked", "shorter", "longer", "only asked"],
)
def test_requests_may_shorten_their_time_where_they_are_let(
    policy: QueuePolicy, patience: float, limit: int | None
) -> None:
    bench = Bench(policy=policy)
    assert bench.add(1, patience=patience).limit == limit


def test_callers_own_deadline_counts_too() -> None:
    bench = Bench(policy=QueuePolicy(timeout=0.01))
    assert bench.add(1, expires=0.005).limit == 5 * MS
    assert bench.add(1, expires=0.5).limit == 10 * MS
