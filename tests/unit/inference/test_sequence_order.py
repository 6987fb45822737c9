"""Many sequences at once, from many threads: every answer against a reference."""

import itertools
import random
import threading
from collections.abc import Iterable, Mapping

import pytest

from tests.support.sequences import FLAGS, ID, OLDEST, STATE, Reply, Sequences, accumulator, call, onnx, running, told
from tidemill.errors import TidemillError
from tidemill.inference.calls import Answer, Call
from tidemill.inference.configuration import DynamicBatching, SequenceBatching
from tidemill.inference.scheduling.sequence import SequenceScheduler
from tidemill.inference.scheduling.sequence_queue import SequenceQueue
from tidemill.inference.scheduling.timing import SystemTiming

THREADS = 32
STRATEGIES = {
    "direct": SequenceBatching(idle=60, states=(STATE,)),
    "direct-delay": SequenceBatching(idle=60, states=(STATE,), delay=0.001, utilization=0.6),
    "oldest": SequenceBatching(idle=60, states=(STATE,), oldest=OLDEST, candidates=6),
    "oldest-order": SequenceBatching(
        idle=60, states=(STATE,), oldest=DynamicBatching(preferred=(2, 4), delay=0.001, preserve_order=True)
    ),
}
Sent = tuple[int | str, int, str]


def interleaved(random_: random.Random, thread: int) -> list[Sent]:
    """Requests of some sequences of one thread, mixed, those of each in their order; some begin anew, some end late."""
    queues = []
    for number in range(4):
        name: int | str = 100 * thread + number + 1
        requests: list[Sent] = []
        for _ in range(random_.choice((1, 1, 2))):
            length = random_.randint(1, 6)
            flags = ["s" * (not at) + "e" * (at == length - 1) for at in range(length)]
            requests += [(name if number % 2 else f"s{name}", random_.randint(-99, 99), flag) for flag in flags]
        queues.append(requests)
    mixed = []
    while queues:
        queue = random_.choice(queues)
        mixed.append(queue.pop(0))
        queues = [queue for queue in queues if queue]
    return mixed


def reference(sent: Iterable[Sent]) -> list[int]:
    """The sum of the sequence so far, for each request."""
    sums: dict[int | str, int] = {}
    found = []
    for name, x, flags in sent:
        sums[name] = x if "s" in flags else sums[name] + x
        found.append(sums[name])
    return found


def wrong(m: Sequences, seed: int) -> int:
    """How many answers differ from the reference, when many threads bring mixed sequences at once."""
    plans = [interleaved(random.Random(1000 * seed + thread), thread) for thread in range(THREADS)]
    together = threading.Barrier(THREADS)
    replies: list[list[Reply]] = [[] for _ in plans]

    def bring(thread: int) -> None:
        together.wait(20)
        for name, x, flags in plans[thread]:
            replies[thread].append(m.send(name, x, flags, output="sum"))

    threads = [threading.Thread(target=bring, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    found = [reply.value("sum") for reply in itertools.chain(*replies)]
    expected = list(itertools.chain(*map(reference, plans)))
    assert m.statistics.snapshot().success.count == len(expected)
    return sum(one != other for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("instances", [1, 3])
def test_every_answer_of_interleaved_sequences(strategy: str, instances: int, seed: int) -> None:
    with running(onnx(accumulator()), STRATEGIES[strategy], timing=SystemTiming(), instances=instances) as m:
        assert wrong(m, seed) == 0
        assert m.scheduler.pending == 0


class Leaky(SequenceScheduler):
    """Lets a sequence begin with what the one before left in its place."""

    left: Mapping[int, object] = {}

    def _fed(self, sequence: SequenceQueue, call: Call, instance: object) -> Call:
        fed = super()._fed(sequence, call, instance)  # type: ignore[arg-type]
        if call.starts and sequence.place in self.left:
            fed.inputs = {**fed.inputs, **self.left[sequence.place]}  # type: ignore[dict-item]
        return fed

    def _finished(self, sequence: SequenceQueue, call: Call, reply: Answer | TidemillError) -> Answer | TidemillError:
        reply = super()._finished(sequence, call, reply)
        self.left = {**self.left, sequence.place: sequence.state}
        return reply


def test_the_check_sees_a_leak() -> None:
    with running(onnx(accumulator()), STRATEGIES["direct"], timing=SystemTiming(), kind=Leaky) as m:
        assert wrong(m, 1) > 100


def test_one_sequence_from_many_threads() -> None:
    with running(onnx(accumulator()), STRATEGIES["direct"], timing=SystemTiming()) as m:
        numbers, lock = itertools.count(), threading.Lock()
        replies: list[Reply] = []

        def bring() -> None:
            for _ in range(10):
                with lock:
                    number = next(numbers)
                    replies.append(m.send("one", number, "s" * (not number), output="sum"))

        threads = [threading.Thread(target=bring) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert [reply.value("sum") for reply in replies] == [
            number * (number + 1) // 2 for number in range(10 * THREADS)
        ]


@pytest.mark.parametrize("oldest", [None, OLDEST], ids=["direct", "oldest"])
def test_every_row_is_told_what_it_is(oldest: DynamicBatching | None) -> None:
    sequence = SequenceBatching(idle=60, controls=(*FLAGS, ID), oldest=oldest)
    with running(onnx(told()), sequence, timing=SystemTiming()) as m:
        replies = []
        for x, flags in enumerate(("s", "", "", "e")):
            for number in range(1, 13):
                reply = Reply()
                m.scheduler.submit(call(number, x, flags, outputs=["seen", "id"]), reply)
                replies.append((reply, [x, int(flags == "s"), 1, int(flags == "e")], number))
        for reply, seen, number in replies:
            answer = reply.last
            assert isinstance(answer, Answer)
            assert answer.outputs["seen"].tolist() == [seen]
            assert answer.outputs["id"].tolist() == [[number]]
