"""What a model of sequences is given, run by run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.support.sequences import FLAGS, ID, OLDEST, STATE, Recorder, running
from tidemill.errors import Internal, TidemillError
from tidemill.inference.calls import Answer, Call, Receive
from tidemill.inference.configuration import Control, ControlKind, DynamicBatching, SequenceBatching, SequenceState
from tidemill.inference.runtimes.base import CallRuntime
from tidemill.inference.statistics import Times
from tidemill.tensors.dtypes import DataType

DIRECT = SequenceBatching(idle=10)


def test_each_sequence_has_its_own_row() -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10, controls=(*FLAGS, ID))) as m:
        assert m.ask(7, 1, "s") == 10
        assert m.ask(8, 2, "s") == 20
        assert m.ask(9, 3, "s") == 30
        assert m.ask(8, 4) == 40
        assert m.ask(7, 5, "e") == 50
        assert m.ask(9, 6) == 60
    assert recorder.runs == [
        {"x": [[1]], "START": [[1]], "READY": [[1]], "END": [[0]], "CORRID": [[7]]},
        {"x": [[0], [2]], "START": [[0], [1]], "READY": [[0], [1]], "END": [[0], [0]], "CORRID": [[7], [8]]},
        {
            "x": [[0], [0], [3]],
            "START": [[0], [0], [1]],
            "READY": [[0], [0], [1]],
            "END": [[0], [0], [0]],
            "CORRID": [[7], [8], [9]],
        },
        {"x": [[0], [4]], "START": [[0], [0]], "READY": [[0], [1]], "END": [[0], [0]], "CORRID": [[7], [8]]},
        {"x": [[5]], "START": [[0]], "READY": [[1]], "END": [[1]], "CORRID": [[7]]},
        {
            "x": [[0], [0], [6]],
            "START": [[0], [0], [0]],
            "READY": [[0], [0], [1]],
            "END": [[0], [0], [0]],
            "CORRID": [[0], [8], [9]],
        },
    ]


def test_slots_that_are_ready_run_together() -> None:
    recorder = Recorder()
    with running(recorder, DIRECT) as m:
        replies = busy(recorder, m, [1, 2, 3, 4])
        assert [reply.value("y") for reply in replies] == [20, 30, 40]
        books = m.statistics.snapshot()
    assert recorder.xs == [[[1]], [[0], [2], [3], [4]]]
    assert {size: found.infer.count for size, found in books.batches.items()} == {1: 1, 3: 1}
    assert (books.success.count, books.inferences) == (4, 4)


def busy(recorder: Recorder, m: Any, values: Sequence[int]) -> list[Any]:
    """Start a sequence for each value while the first one runs, then let all go."""
    recorder.free.clear()
    first = m.send(1, values[0], "s")
    assert recorder.begun.acquire(timeout=20)
    replies = [m.send(number, value, "s") for number, value in enumerate(values[1:], 2)]
    recorder.free.set()
    first.value("y")
    return replies


def test_control_values_and_types() -> None:
    recorder = Recorder()
    controls = (
        Control(name="go", kind=ControlKind.READY, datatype=DataType.FP32, false=-1.5, true=2.5),
        Control(name="first", kind=ControlKind.START, datatype=DataType.BOOL),
        Control(name="name", kind=ControlKind.CORRID, datatype=DataType.BYTES),
    )
    with running(recorder, SequenceBatching(idle=10, controls=controls)) as m:
        m.ask("eins", 1, "s")
        m.ask("zwei", 2, "s")
        m.ask("eins", 3, "e")
        m.ask("zwei", 4)
    assert recorder.runs[0] == {"x": [[1]], "go": [[2.5]], "first": [[True]], "name": [[b"eins"]]}
    assert recorder.runs[1] == {
        "x": [[0], [2]],
        "go": [[-1.5], [2.5]],
        "first": [[False], [True]],
        "name": [[b"eins"], [b"zwei"]],
    }
    assert recorder.runs[3]["name"] == [[b""], [b"zwei"]]


def test_models_without_batches_have_one_slot() -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10, controls=FLAGS[:1]), max_batch=0) as m:
        x = {"x": np.array([1, 2], np.int32)}
        reply = m.send(1, flags="s", inputs=x)
        waits = m.send(2, flags="s", inputs=x)
        assert reply.value("y") == 10
        assert m.scheduler.pending == 1
        assert m.ask(1, flags="e", inputs=x) == 10
        assert waits.value("y") == 10
    assert recorder.runs[0] == {"x": [1, 2], "START": [1]}


def test_direct_waits_for_enough_slots() -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10, delay=5, utilization=0.5)) as m:
        first = m.send(1, 1, "s")
        m.timing.advance(4.5)
        assert not first.done.is_set()
        second = m.send(2, 2, "s")
        assert [first.value("y"), second.value("y")] == [10, 20]
        alone = m.send(1, 3)
        m.timing.advance(4.5)
        assert not alone.done.is_set()
        m.timing.advance(0.5)
        assert alone.value("y") == 30
    assert recorder.xs == [[[1], [2]], [[3]]]


def test_shapes_that_differ_run_apart() -> None:
    recorder = Recorder()
    with running(recorder, DIRECT) as m:
        recorder.free.clear()
        m.send(1, 1, "s")
        assert recorder.begun.acquire(timeout=20)
        wide = m.send(2, flags="s", inputs={"x": np.array([[2, 2]], np.int32)})
        narrow = m.send(3, 3, "s")
        recorder.free.set()
        assert (wide.value("y"), narrow.value("y")) == (20, 30)
    assert recorder.xs == [[[1]], [[0, 0], [2, 2]], [[0], [0], [3]]]


@pytest.mark.parametrize("sequence", [DIRECT, SequenceBatching(idle=10, oldest=OLDEST)], ids=["direct", "oldest"])
def test_one_bad_call_fails_alone(sequence: SequenceBatching) -> None:
    recorder = Recorder()
    recorder.poison = 13
    with running(recorder, sequence) as m:
        second, bad, fourth = busy(recorder, m, [1, 2, 13, 4])
        assert (second.value("y"), fourth.value("y")) == (20, 40)
        assert isinstance(bad.last, Internal)
        assert m.ask(3, 5) == 50


def test_oldest_packs_rows() -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10, oldest=OLDEST, controls=FLAGS[:2])) as m:
        replies = busy(recorder, m, [1, 2, 3, 4, 5, 6])
        assert [reply.value("y") for reply in replies] == [20, 30, 40, 50, 60]
    assert recorder.xs == [[[1]], [[2], [3], [4], [5]], [[6]]]
    assert recorder.runs[1]["READY"] == [[1]] * 4


def test_oldest_runs_one_request_of_a_sequence_at_a_time() -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10, oldest=OLDEST)) as m:
        recorder.free.clear()
        m.send(1, 1, "s")
        assert recorder.begun.acquire(timeout=20)
        replies = [m.send(1, 2), m.send(1, 3), m.send(2, 4, "s"), m.send(2, 5)]
        recorder.free.set()
        assert [reply.value("y") for reply in replies] == [20, 30, 40, 50]
    assert [sorted(row[0] for row in x) for x in recorder.xs] == [[1], [2, 4], [3, 5]]


def test_oldest_waits_for_preferred_sizes() -> None:
    recorder = Recorder()
    oldest = DynamicBatching(preferred=(2,), delay=5)
    with running(recorder, SequenceBatching(idle=10, oldest=oldest)) as m:
        first = m.send(1, 1, "s")
        m.timing.advance(4.5)
        assert not first.done.is_set()
        assert m.ask(2, 2, "s") == 20
        alone = m.send(1, 3)
        m.timing.advance(5)
        assert alone.value("y") == 30
    assert recorder.xs == [[[1], [2]], [[3]]]


def test_oldest_candidates_are_bounded_and_the_oldest() -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10, oldest=OLDEST, candidates=2)) as m:
        m.ask(1, 1, "s")
        m.ask(2, 2, "s")
        third, fourth = m.send(3, 3, "s"), m.send(4, 4, "s")
        assert m.ask(1, 5) == 50
        assert not third.done.is_set()
        assert m.ask(2, 6, "e") == 60
        assert third.value("y") == 30
        assert not fourth.done.is_set()
        assert m.ask(1, 7, "e") == 70
        assert fourth.value("y") == 40


@pytest.mark.parametrize(
    ("preserve", "runs"),
    [(True, [[[1]], [[2]], [[3, 3]], [[4]]]), (False, [[[1]], [[2], [4]], [[3, 3]]])],
    ids=["preserved", "free"],
)
def test_preserving_order_lets_nobody_overtake(preserve: bool, runs: list[Any]) -> None:
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10, oldest=DynamicBatching(preserve_order=preserve))) as m:
        recorder.free.clear()
        replies = [m.send(1, 1, "s")]
        assert recorder.begun.acquire(timeout=20)
        for number, width in ((2, 1), (3, 2), (4, 1)):
            replies.append(m.send(number, flags="s", inputs={"x": np.full((1, width), number, np.int32)}))
        recorder.free.set()
        assert [reply.value("y") for reply in replies] == [10, 20, 30, 40]
    assert recorder.xs == runs


def test_states_begin_with_given_bytes_and_stay_hidden() -> None:
    state = SequenceState(
        input="before", output="after", datatype=DataType.INT32, dims=(2,), initial=np.array([4, 5], "<i4").tobytes()
    )
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10, states=(state,))) as m:
        answer = m.send(1, flags="s", inputs={"x": np.array([[1, 2]], np.int32)}).last
        assert isinstance(answer, Answer)
        assert list(answer.outputs) == ["y"]
        m.ask(1, flags="", inputs={"x": np.array([[3, 3]], np.int32)})
        m.ask(1, flags="s", inputs={"x": np.array([[3, 3]], np.int32)})
    assert [run["before"] for run in recorder.runs] == [[[4, 5]], [[10, 20]], [[4, 5]]]


@pytest.mark.parametrize("initial", [None, np.array([4, 5], "<i4").tobytes()], ids=["zeros", "bytes"])
def test_states_of_any_size_begin_with_the_given_one(initial: bytes | None) -> None:
    state = SequenceState(
        input="before", output="after", datatype=DataType.INT32, dims=(-1,), initial=initial, initial_dims=(2,)
    )
    recorder = Recorder()
    with running(recorder, SequenceBatching(idle=10, states=(state,))) as m:
        m.ask(1, flags="s", inputs={"x": np.array([[1, 2]], np.int32)})
    assert recorder.runs[0]["before"] == [[4, 5] if initial else [0, 0]]


def test_failed_request_leaves_the_state_as_it_was() -> None:
    recorder = Recorder()
    recorder.poison = 13
    with running(recorder, SequenceBatching(idle=10, states=(STATE,))) as m:
        m.ask(1, 1, "s")
        with pytest.raises(Internal):
            m.ask(1, 13)
        m.ask(1, 2)
    assert recorder.runs[-1]["before"] == [[10]]


class Talker(CallRuntime):
    """Gives as many answers as x says, or fails as a whole; keeps what it was given."""

    platform = "talker"
    select = load = signature = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.seen: list[list[Call]] = []
        self.broken = False

    def execute(self, calls: Sequence[Call]) -> tuple[list[Answer | TidemillError], Times | None]:
        self.seen.append(list(calls))
        if self.broken:
            return [Internal("failed") for _ in calls], None
        return [Answer(outputs={"y": call.inputs["x"]}) for call in calls], None

    def stream(self, call: Call, receive: Receive) -> None:
        self.seen.append([call])
        for _ in range(int(call.inputs["x"][0, 0])):
            receive(Answer(outputs={"y": call.inputs["x"]}), False)
        receive(None, True)


def test_models_that_take_calls_know_sequence_and_instance() -> None:
    talker = Talker()
    with running(talker, SequenceBatching(idle=10, controls=FLAGS[:1]), instances=2) as m:
        for number in (1, 2, 3):
            assert m.ask(number, number, "s") == number
        assert m.ask(2, 4, "e") == 4
    found = [(call.correlation, call.starts, call.ends, call.instance) for (call,) in talker.seen]
    assert found == [(1, True, False, 0), (2, True, False, 1), (3, True, False, 0), (2, False, True, 1)]
    assert talker.seen[0][0].inputs["START"].tolist() == [[1]]


def test_models_with_state_of_their_own_run_nothing_twice() -> None:
    talker = Talker()
    talker.broken = True
    with running(talker, SequenceBatching(idle=10, delay=5, utilization=0.5)) as m:
        replies = [m.send(number, 1, "s") for number in (1, 2)]
        assert all(isinstance(reply.last, Internal) for reply in replies)
    assert [len(calls) for calls in talker.seen] == [2]


def test_decoupled_answers() -> None:
    talker = Talker()
    with running(talker, DIRECT, decoupled=True) as m:
        many, none = m.send(1, 3, "s"), m.send(1, 0, "e")
        assert none.last is None
        assert len(many.replies) == 4
        assert len(none.replies) == 1
        with pytest.raises(TidemillError, match="must specify the START flag"):
            m.ask(1, 1)


class Apart(Talker):
    """Takes calls, though its model knows nothing but tensors."""

    sees_calls = False


def test_models_that_know_tensors_only_have_slots_wherever_they_run() -> None:
    apart = Apart()
    with running(apart, SequenceBatching(idle=10, controls=FLAGS[1:2])) as m:
        for number in (1, 2):
            assert m.ask(number, number, "s") == number
    found = [{name: array.tolist() for name, array in call.inputs.items()} for (call,) in apart.seen]
    assert found == [{"x": [[1]], "READY": [[1]]}, {"x": [[0], [2]], "READY": [[0], [1]]}]
