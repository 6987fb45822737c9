"""When sequences begin, wait, end and are given up."""

import threading

import pytest

from tests.support.sequences import OLDEST, STATE, Recorder, Sequences, accumulator, onnx, running
from tidemill.errors import Cancelled, DeadlineExceeded, Invalid, Unavailable
from tidemill.inference.configuration import SequenceBatching

SUMS = SequenceBatching(idle=10, states=(STATE,))
BOTH = pytest.mark.parametrize(
    "sequence",
    [SUMS, SequenceBatching(idle=10, states=(STATE,), oldest=OLDEST, candidates=4)],
    ids=["direct", "oldest"],
)


def total(m: Sequences, correlation: int | str, x: int, flags: str = "") -> int:
    """Add x to a sequence's sum."""
    found: int = m.ask(correlation, x, flags, output="sum")
    return found


@BOTH
def test_state_is_kept_between_requests_of_a_sequence(sequence: SequenceBatching) -> None:
    with running(onnx(accumulator()), sequence) as m:
        assert [total(m, 1, 1, "s"), total(m, "a", 10, "s"), total(m, 1, 2), total(m, "a", 20)] == [1, 10, 3, 30]
        assert [total(m, 1, 3, "e"), total(m, "a", 30, "e")] == [6, 60]


@BOTH
def test_a_slot_forgets_its_sequence(sequence: SequenceBatching) -> None:
    with running(onnx(accumulator()), sequence) as m:
        for number in range(1, 20):
            assert total(m, number, number, "s") == number
            assert total(m, number, 1, "e") == number + 1


@BOTH
def test_a_start_begins_anew(sequence: SequenceBatching) -> None:
    with running(onnx(accumulator()), sequence) as m:
        total(m, 1, 5, "s")
        assert total(m, 1, 1, "s") == 1
        assert total(m, 1, 1, "e") == 2
        assert total(m, 1, 7, "s") == 7


@BOTH
def test_silent_sequence_is_given_up(sequence: SequenceBatching) -> None:
    with running(onnx(accumulator()), sequence) as m:
        total(m, 1, 5, "s")
        m.timing.advance(9.9)
        assert total(m, 1, 5) == 10
        m.timing.advance(9.9)
        assert total(m, 1, 5) == 15
        m.timing.advance(10)
        with pytest.raises(Invalid, match="inference request for sequence 1 to model 'm' must specify the START flag"):
            total(m, 1, 5)
        assert total(m, 1, 6, "s") == 6


@BOTH
def test_a_silent_sequence_makes_room(sequence: SequenceBatching) -> None:
    with running(onnx(accumulator()), sequence) as m:
        for number in range(1, 5):
            total(m, number, number, "s")
        waits = m.send(5, 50, "s", output="sum")
        m.timing.advance(9.9)
        total(m, 2, 1)
        assert not waits.done.is_set()
        m.timing.advance(0.2)
        assert waits.value("sum") == 50
        assert total(m, 2, 1) == 4


def test_one_that_waits_for_a_place_is_not_silent() -> None:
    with running(onnx(accumulator()), SUMS, max_batch=1) as m:
        total(m, 1, 1, "s")
        waits = m.send(2, 2, "s", output="sum")
        for _ in range(4):
            m.timing.advance(9)
            total(m, 1, 1)
        assert total(m, 1, 1, "e") == 6
        assert waits.value("sum") == 2


def test_backlog_keeps_its_order() -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10), max_batch=1) as m:
        m.ask(1, 1, "s")
        replies = [m.send(number, number, flags) for flags in ("s", "e") for number in (4, 2, 3)]
        assert m.scheduler.pending == 6
        m.ask(1, 5, "e")
        assert [reply.value("y") for reply in replies] == [40, 20, 30, 40, 20, 30]
        assert m.scheduler.pending == 0
    assert recorder.xs == [[[x]] for x in (1, 5, 4, 4, 2, 2, 3, 3)]


def test_one_that_begins_anew_lets_others_go_first() -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10), max_batch=1) as m:
        recorder.free.clear()
        replies = [m.send(1, x, "se") for x in (1, 2, 3)]
        replies += [m.send(2, 4, "se"), m.send(1, 5, "se")]
        recorder.free.set()
        assert [reply.value("y") for reply in replies] == [10, 20, 30, 40, 50]
    assert recorder.xs == [[[x]] for x in (1, 4, 2, 3, 5)]


def test_unwanted_call_does_not_run_and_ends_its_sequence() -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10)) as m:
        recorder.free.clear()
        first = m.send(1, 1, "s")
        assert recorder.begun.acquire(timeout=20)
        here = threading.Event()
        here.set()
        gone, after, anew = m.send(1, 2, alive=here.is_set), m.send(1, 3), m.send(1, 4, "s")
        here.clear()
        recorder.free.set()
        assert (first.value("y"), anew.value("y")) == (10, 40)
        assert isinstance(gone.last, DeadlineExceeded)
        assert isinstance(after.last, Cancelled)
        assert m.ask(1, 5) == 50
        assert m.statistics.snapshot().fail.count == 2
    assert recorder.xs == [[[1]], [[4]], [[5]]]


def test_unwanted_call_frees_its_place() -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10), max_batch=1) as m:
        m.ask(1, 1, "s")
        waits = m.send(2, 2, "se")
        assert isinstance(m.send(1, 3, expires=0.0).last, DeadlineExceeded)
        assert waits.value("y") == 20
        with pytest.raises(Invalid, match="START"):
            m.ask(1, 4)


def test_callers_who_go_leave_the_backlog() -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10), max_batch=1) as m:
        m.ask(1, 1, "s")
        here = threading.Event()
        here.set()
        waits = m.send(2, 2, "s", alive=here.is_set)
        here.clear()
        m.timing.advance(1.1)
        assert isinstance(waits.last, DeadlineExceeded)
        assert m.scheduler.pending == 0
        assert m.ask(1, 3, "e") == 30
    assert recorder.xs == [[[1]], [[3]]]


def test_patience_ends_in_the_backlog() -> None:
    with running(Recorder(), SequenceBatching(idle=10), max_batch=1) as m:
        m.ask(1, 1, "s")
        waits, too = m.send(2, 2, "s", patience=0.5), m.send(2, 2)
        m.timing.advance(0.4)
        assert not waits.done.is_set()
        m.timing.advance(0.2)
        for reply in (waits, too):
            error = reply.last
            assert isinstance(error, Unavailable)
            assert error.message == "timeout of the corresponding sequence has been expired"
        with pytest.raises(Invalid, match="START"):
            m.ask(2, 2)


def test_sequences_are_spread_over_instances_and_stay() -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10), instances=2, max_batch=2) as m:
        recorder.free.clear()
        replies = [m.send(number, number, "s") for number in (1, 2, 3, 4)]
        for _ in range(2):
            assert recorder.begun.acquire(timeout=20)
        recorder.free.set()
        assert [reply.value("y") for reply in replies] == [10, 20, 30, 40]
        waits = m.send(5, 5, "s")
        assert m.ask(4, 6) == 60
        assert not waits.done.is_set()
        m.ask(3, 7, "e")
        assert waits.value("y") == 50
    assert recorder.xs[-3:] == [[[0], [6]], [[0], [7]], [[0], [5]]]


def test_closing_refuses_what_waits_and_finishes_what_runs() -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10), max_batch=1) as m:
        recorder.free.clear()
        runs = m.send(1, 1, "s")
        assert recorder.begun.acquire(timeout=20)
        refused = [m.send(1, 2), m.send(2, 3, "s")]
        closing = threading.Thread(target=m.scheduler.close)
        closing.start()
        for reply in refused:
            assert isinstance(reply.last, Unavailable)
        recorder.free.set()
        closing.join(20)
        assert runs.value("y") == 10
        late = m.send(3, 3, "s")
        assert isinstance(late.last, Unavailable)
    assert recorder.xs == [[[1]]]
