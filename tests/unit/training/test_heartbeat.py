"""Signs of life: what a worker makes of the answers."""

import logging
from dataclasses import dataclass, field

import pytest

from tests.support.wait import until
from tidemill import errors
from tidemill.training.epochs import Epoch, Result
from tidemill.training.worker.failure import MAX_TEXT, describe, is_final, trace
from tidemill.training.worker.heartbeat import Heart, Progress
from tidemill.training.worker.stop import Stop, Stopped
from tidemill.training.worker.task import Answer, Decision, Place, Task


@dataclass
class Service:
    """Answers signs of life as told."""

    answer: bool | errors.TidemillError = False
    beats: list[tuple[str, int]] = field(default_factory=list)

    def beat(
        self, phase: str, *, step: int, steps_per_epoch: int, loss: float, samples: int, generation: int
    ) -> Answer:
        self.beats.append((phase, step))
        if isinstance(self.answer, errors.TidemillError):
            raise self.answer
        return Answer(stop=self.answer, generation=3)

    def meet(self, *, lost: int, address: str) -> Place:
        raise NotImplementedError

    def choose_copy(self, shard: int, term: int, copy: int) -> tuple[int, int]:
        raise NotImplementedError

    def task(self) -> Task:
        raise NotImplementedError

    def report_checkpoint(self, checkpoint: str, step: int, *, paused: bool = False, moved: bool = False) -> None:
        raise NotImplementedError

    def report_epoch(self, epoch: Epoch) -> Decision:
        raise NotImplementedError

    def report_result(self, result: Result) -> None:
        raise NotImplementedError

    def report_failure(
        self, error: str, *, final: bool, step: int, traceback: str = "", group_lost: bool = False
    ) -> None:
        raise NotImplementedError


async def test_it_beats_with_the_progress_until_the_worker_stops() -> None:
    service, progress, stop = Service(), Progress(), Stop()
    heart = Heart(service, progress, stop, 0.01)
    heart.start()
    await until(lambda: len(service.beats) > 2)
    progress.phase, progress.step = "training", 5
    await until(lambda: service.beats[-1] == ("training", 5))
    stop.set("enough")
    heart.join()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (True, "the training service asks to stop"),
        (errors.Stale("another process has rank 1 now: end"), "another process has rank 1 now: end"),
        (errors.Unauthenticated("the token is of no worker at work"), "the token is of no worker at work"),
    ],
)
def test_answers_that_end_the_worker(answer: bool | errors.TidemillError, reason: str) -> None:
    stop = Stop()
    heart = Heart(Service(answer), Progress(), stop, 60)
    heart.start()
    assert stop.wait(20)
    heart.join()
    with pytest.raises(Stopped, match=reason):
        stop.check()


def test_a_service_out_of_reach_is_told_once_and_does_not_end_the_worker(caplog: pytest.LogCaptureFixture) -> None:
    service, stop = Service(errors.Unavailable("connection refused")), Stop()
    heart = Heart(service, Progress(), stop, 60)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            heart.beat()
        service.answer = False
        heart.beat()
        service.answer = errors.DeadlineExceeded("too slow")
        heart.beat()
    assert not stop.is_set
    assert [record.getMessage() for record in caplog.records] == [
        "the training service does not answer: connection refused",
        "the training service does not answer: too slow",
    ]


def test_the_first_reason_to_stop_is_kept() -> None:
    stop = Stop()
    stop.check()
    stop.set("one")
    stop.set("two")
    assert stop.reason == "one"
    with pytest.raises(Stopped, match="one"):
        stop.pause(60)


class TestFailures:
    @pytest.mark.parametrize("kind", [errors.Invalid, errors.FailedPrecondition, errors.NotFound, errors.DataLoss])
    def test_what_a_new_worker_would_meet_again(self, kind: type[errors.TidemillError]) -> None:
        error = kind("the file is bad")
        assert is_final(error)
        assert describe(error) == "the file is bad"

    @pytest.mark.parametrize("kind", [errors.Unavailable, errors.DeadlineExceeded, errors.Internal, errors.Exhausted])
    def test_what_a_new_worker_may_be_spared(self, kind: type[errors.TidemillError]) -> None:
        assert not is_final(kind("busy"))

    @pytest.mark.parametrize("kind", [MemoryError, OSError, RuntimeError, KeyError])
    def test_unexpected_errors_come_with_frames_within_the_limit(self, kind: type[Exception]) -> None:
        def deep(depth: int) -> None:
            if depth:
                deep(depth - 1)
            else:
                raise kind("boom" * 1000)

        with pytest.raises(kind) as caught:
            deep(60)
        text = describe(caught.value)
        assert not is_final(caught.value)
        assert text.startswith(kind.__name__)
        assert len(text) <= MAX_TEXT
        assert "in deep" in trace(caught.value)
