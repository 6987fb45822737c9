"""Dynamic batching with callers on threads."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.batching import POISON, Caller, Mailbox, Marking, call, loaded, problem, until
from tidemill.errors import DeadlineExceeded, Exhausted, Internal, Invalid, TidemillError, Unavailable
from tidemill.inference.calls import Answer, Array, Call
from tidemill.inference.configuration import DynamicBatching, QueuePolicy, TimeoutAction
from tidemill.inference.loaded import Loaded
from tidemill.telemetry.setup import setup

Load = Callable[..., Loaded]


@pytest.fixture
def load() -> Iterator[Load]:
    made: list[Loaded] = []

    def make(*args: Any, **more: Any) -> Loaded:
        made.append(loaded(*args, **more))
        return made[-1]

    yield make
    for one in made:
        one.close()


def waiting(version: Loaded, *calls: Call) -> list[Caller]:
    """Callers whose calls wait, in this order."""
    callers = []
    for one in calls:
        before = version.scheduler.pending
        callers.append(Caller(version, one))
        until(lambda before=before: version.scheduler.pending == before + 1)  # type: ignore[misc]
    return callers


def busy(version: Loaded, model: Marking) -> Caller:
    """A caller whose call holds the instance."""
    caller = Caller(version, call(0))
    model.began()
    return caller


def test_poisoned_call_fails_alone(load: Load) -> None:
    model = Marking(hold=True)
    version = load(model)
    first = busy(version, model)
    good = [call(number) for number in range(1, 8)]
    callers = waiting(version, *good[:3], call(POISON), *good[3:])
    model.let(100)
    assert isinstance(first.result(), Answer)
    failed = callers.pop(3).result()
    assert isinstance(failed, Internal)
    assert "poisoned" not in failed.message
    for one, caller in zip(good, callers, strict=True):
        reply = caller.result()
        assert isinstance(reply, Answer)
        assert problem(one, reply) == ""
    books = version.statistics.snapshot()
    assert (books.success.count, books.fail.count, books.inferences) == (8, 1, 8)


def test_model_that_cannot_be_had_fails_all_at_once(load: Load) -> None:
    class Away(Marking):
        def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
            super().run(inputs, outputs)
            raise Unavailable("the model's process ended")

    model = Away(hold=True)
    version = load(model)
    first = busy(version, model)
    callers = waiting(version, call(1), call(2))
    model.let(100)
    assert all(isinstance(caller.result(), Unavailable) for caller in (first, *callers))
    assert model.sizes == [1, 2]


def test_model_that_raises_anything_harms_nobody_else(load: Load) -> None:
    class Wild(Marking):
        def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
            found = super().run(inputs, outputs)
            if 1 not in inputs["x"]:
                return found
            if len(found[0]) > 1:
                return [found[0][:-1]]
            raise ZeroDivisionError

    model = Wild(hold=True)
    version = load(model)
    first = busy(version, model)
    callers = waiting(version, call(1), call(2))
    model.let(100)
    replies = [caller.result() for caller in (first, *callers)]
    assert [type(reply) for reply in replies] == [Answer, Internal, Answer]


def test_cancelled_and_expired_calls_never_run(load: Load) -> None:
    model = Marking(hold=True)
    version = load(model)
    first = busy(version, model)
    here = [True, True]
    cancelled, other = waiting(version, call(1, alive=lambda: here[0]), call(2, alive=lambda: here[1]))
    expiring = Caller(version, call(3, expires=time.monotonic() + 0.05))
    assert isinstance(expiring.result(), DeadlineExceeded)  # now, though the instance is still busy
    here[0] = False
    model.let(2)
    assert isinstance(first.result(), Answer)
    assert isinstance(other.result(), Answer)
    assert isinstance(cancelled.result(), DeadlineExceeded)
    assert model.seen == [0, 2]
    assert version.statistics.snapshot().fail.count == 2


def test_submitted_calls_are_answered_at_their_limit(load: Load) -> None:
    model = Marking(hold=True)
    version = load(model, dynamic=DynamicBatching(policy=QueuePolicy(timeout=0.05)))
    first, box = busy(version, model), Mailbox()
    version.scheduler.submit(call(1), box.of("policy"))
    version.scheduler.submit(call(2, expires=time.monotonic() + 0.02), box.of("caller"))
    box.wait(2)
    assert box.order == ["caller", "policy"]
    assert isinstance(box.replies["caller"], DeadlineExceeded)
    refused = box.replies["policy"]
    assert isinstance(refused, Unavailable)
    assert refused.message == "Request timeout expired"
    model.let()
    assert isinstance(first.result(), Answer)
    assert model.seen == [0]


def test_rejected_callers_are_answered_at_their_limit(load: Load) -> None:
    model = Marking(hold=True)
    version = load(model, dynamic=DynamicBatching(policy=QueuePolicy(allow_override=True)))
    first = busy(version, model)
    refused = Caller(version, call(1, patience=0.02)).result()
    assert isinstance(refused, Unavailable)
    assert refused.message == "Request timeout expired"
    model.let()
    assert isinstance(first.result(), Answer)


def test_delayed_calls_run_after_those_in_time(load: Load) -> None:
    policy = QueuePolicy(action=TimeoutAction.DELAY, timeout=0.001)
    model = Marking(hold=True)
    version = load(model, dynamic=DynamicBatching(policy=policy), max_batch=1)
    first = busy(version, model)
    late = waiting(version, call(1, arrived=0))
    fresh = waiting(version, call(2, arrived=time.monotonic_ns() + 60_000_000_000))
    model.let(3)
    assert all(isinstance(caller.result(), Answer) for caller in (first, *late, *fresh))
    assert model.seen == [0, 2, 1]


def test_urgent_calls_run_first(load: Load) -> None:
    model = Marking(hold=True)
    version = load(model, dynamic=DynamicBatching(levels=2, default_level=2), max_batch=1)
    first = busy(version, model)
    callers = waiting(version, call(1), call(2, priority=2), call(3, priority=1), call(4, priority=1))
    model.let(5)
    assert all(isinstance(caller.result(), Answer) for caller in (first, *callers))
    assert model.seen == [0, 3, 4, 1, 2]


def test_queues_are_bounded(load: Load) -> None:
    model = Marking(hold=True)
    version = load(model, dynamic=DynamicBatching(policy=QueuePolicy(size=2)))
    first = busy(version, model)
    callers = waiting(version, call(1), call(2))
    with pytest.raises(Unavailable, match="Exceeds maximum queue size") as full:
        version.scheduler.infer(call(3))
    assert full.value.retry_after
    model.let(2)
    assert all(isinstance(caller.result(), Answer) for caller in (first, *callers))
    assert model.seen == [0, 1, 2]


def test_server_bounds_queues_without_a_limit(load: Load) -> None:
    model = Marking(hold=True)
    version = load(model, bound=1)
    first = busy(version, model)
    (second,) = waiting(version, call(1))
    box = Mailbox()
    version.scheduler.submit(call(2), box.of("refused"))
    assert isinstance(box.replies["refused"], Exhausted)
    model.let(2)
    assert isinstance(first.result(), Answer)
    assert isinstance(second.result(), Answer)


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (call(*range(1, 10)), "inference request batch-size must be <= 8 for 'm'"),
        (call(1, rows=2), "input 'x' batch size does not match other inputs for 'm'"),
    ],
    ids=["too many", "other number"],
)
def test_rows_that_do_not_fit_are_refused(load: Load, bad: Call, text: str) -> None:
    version = load(Marking())
    with pytest.raises(Invalid) as refused:
        version.scheduler.infer(bad)
    assert refused.value.message == text
    assert version.statistics.snapshot().fail.count == 1


class Turned(Marking):
    """Two instances that end in the order that the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = {number: threading.Event() for number in range(4)}

    def run(self, inputs: Mapping[str, Array], outputs: Sequence[str]) -> list[Array]:
        self._began.release()
        assert self.ends[int(inputs["x"][0, 0])].wait(20)
        return super().run(inputs, outputs)


@pytest.mark.parametrize("ordered", [True, False])
def test_answers_leave_in_order_where_that_is_asked_for(load: Load, ordered: bool) -> None:
    model = Turned()
    version = load(model, instances=3, max_batch=1, dynamic=DynamicBatching(preserve_order=ordered))
    box = Mailbox()
    for number in range(3):
        version.scheduler.submit(call(number), box.of(str(number)))
        model.began()
    model.ends[2].set()
    if not ordered:
        box.wait()
    else:
        until(lambda: version.statistics.snapshot().success.count == 1)
    model.ends[1].set()
    if not ordered:
        box.wait()
    else:
        until(lambda: version.statistics.snapshot().success.count == 2)
        assert box.order == []
    model.ends[0].set()
    box.wait(3 if ordered else 1)
    assert box.order == (["0", "1", "2"] if ordered else ["2", "1", "0"])


def test_refusal_does_not_wait_for_its_turn(load: Load) -> None:
    model = Marking(hold=True)
    version = load(model, dynamic=DynamicBatching(preserve_order=True))
    first, box = busy(version, model), Mailbox()
    version.scheduler.submit(call(1, expires=time.monotonic() + 0.02), box.of("expired"))
    version.scheduler.submit(call(2), box.of("last"))
    box.wait()
    assert box.order == ["expired"]
    model.let(2)
    box.wait()
    assert isinstance(first.result(), Answer)


def test_instances_run_at_the_same_time(load: Load) -> None:
    model = Marking(hold=True)
    version = load(model, instances=2, max_batch=1)
    callers = [Caller(version, call(number)) for number in range(3)]
    model.began()
    model.began()
    until(lambda: version.scheduler.pending == 1)
    model.let(3)
    assert all(isinstance(caller.result(), Answer) for caller in callers)
    assert model.most == 2


def test_models_without_batches_run_call_by_call(load: Load) -> None:
    model = Marking(hold=True)
    version = load(model, max_batch=0)
    first = busy(version, model)
    callers = waiting(version, call(1), call(2))
    model.let(3)
    assert all(isinstance(caller.result(), Answer) for caller in (first, *callers))
    assert model.sizes == [1, 1, 1]


def test_submitted_calls_share_a_batch_after_a_delay(load: Load) -> None:
    model = Marking()
    version = load(model, dynamic=DynamicBatching(delay=0.05))
    box = Mailbox()
    version.scheduler.submit(call(1), box.of("a"))
    version.scheduler.submit(call(2), box.of("b"))
    box.wait(2)
    assert model.sizes == [2]


def test_submitted_calls_that_fill_a_batch_do_not_wait(load: Load) -> None:
    model = Marking()
    version = load(model, dynamic=DynamicBatching(delay=1000), max_batch=2)
    box = Mailbox()
    version.scheduler.submit(call(1), box.of("a"))
    version.scheduler.submit(call(2), box.of("b"))
    box.wait(2)
    assert model.sizes == [2]


def test_what_still_waits_at_the_end_is_refused() -> None:
    model = Marking(hold=True)
    version = loaded(model)
    first, box = busy(version, model), Mailbox()
    version.scheduler.submit(call(1), box.of("waits"))
    closing = threading.Thread(target=version.close)
    closing.start()
    box.wait()
    assert isinstance(box.replies["waits"], Unavailable)
    model.let()
    assert isinstance(first.result(), Answer)
    closing.join(20)
    with pytest.raises(Unavailable):
        version.scheduler.infer(call(2))


def test_no_thread_stays_behind() -> None:
    before = set(threading.enumerate())
    version = loaded(Marking(), instances=4)
    version.scheduler.submit(call(1, expires=time.monotonic() + 60), Mailbox().of("a"))
    version.close()
    assert set(threading.enumerate()) <= before


def test_receiver_that_fails_harms_nobody_else(load: Load) -> None:
    version, box = load(Marking()), Mailbox()

    def broken(reply: Answer | TidemillError | None, final: bool) -> None:
        raise ZeroDivisionError

    version.scheduler.submit(call(1), broken)
    version.scheduler.submit(call(2), box.of("other"))
    box.wait()
    assert isinstance(box.replies["other"], Answer)


def test_every_recorded_caller_sees_its_batch() -> None:
    telemetry, spans = setup("test", sample=1.0), InMemorySpanExporter()
    telemetry.provider.add_span_processor(SimpleSpanProcessor(spans))
    model = Marking(hold=True)
    version = loaded(model, telemetry)
    requests = [telemetry.tracer.start_span(f"request {number}") for number in range(2)]
    first = busy(version, model)
    recorded = [call(number, 7, trace=trace.set_span_in_context(span)) for number, span in enumerate(requests)]
    callers = waiting(version, *recorded, call(5))
    model.let(2)
    assert all(isinstance(caller.result(), Answer) for caller in (first, *callers))
    version.close()
    found = spans.get_finished_spans()
    assert {span.context.trace_id for span in found} == {span.get_span_context().trace_id for span in requests}
    for span in found:
        given = dict(span.attributes or {})
        assert float(given.pop("tidemill.queue.seconds")) > 0  # type: ignore[arg-type]
        assert given == {
            "tidemill.model.name": "m",
            "tidemill.model.version": "1",
            "tidemill.batch.size": 5,
            "tidemill.batch.requests": 3,
            "tidemill.batch.closed": "idle",
        }


def test_metrics_tell_sizes_reasons_and_waiting() -> None:
    telemetry = setup("test")
    model = Marking(hold=True)
    version = loaded(model, telemetry)
    first = busy(version, model)
    callers = waiting(version, call(1, 2, 3), call(4))

    def sample(name: str, **labels: str) -> float | None:
        return telemetry.registry.get_sample_value(name, {"model": "m", "version": "1", **labels})

    assert sample("tidemill_queue_length") == 2
    model.let(2)
    assert all(isinstance(caller.result(), Answer) for caller in (first, *callers))
    assert sample("tidemill_queue_length") == 0
    assert sample("tidemill_batches_total", closed="idle") == 2
    assert sample("tidemill_batch_size_sum") == 5
    assert sample("tidemill_queue_seconds_count") == 3
    version.close()


def test_direct_callers_do_not_wait_for_an_instance_beyond_their_deadline(load: Load) -> None:
    model = Marking(hold=True)
    version = load(model, dynamic=None, instances=1)
    first = busy(version, model)
    late = Caller(version, call(1, expires=time.monotonic() + 0.02))
    assert isinstance(late.result(), DeadlineExceeded)
    second = Caller(version, call(2))
    model.let(2)
    assert isinstance(first.result(), Answer)
    assert isinstance(second.result(), Answer)
    assert model.seen == [0, 2]
