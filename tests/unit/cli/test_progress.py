"""A job is shown as it runs: every thing once, in an order that makes sense."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.cli import curve
from tidemill.cli.progress import News, epoch_line, follow, headline, state_name
from tidemill.errors import FailedPrecondition

State = pb.Job.State


def epochs(count: int) -> list[pb.Epoch]:
    return [
        pb.Epoch(
            epoch=number,
            train_loss=2.0 / number,
            validation=pb.Metrics(loss=1.0 / number, accuracy=1 - 0.5 / number, f1=0.5, samples=10),
            seconds=1.5,
            best=number == 1,
        )
        for number in range(1, count + 1)
    ]


def job(state: "State.ValueType", *, done: int = 0, of: int = 4, **fields: Any) -> pb.Job:
    progress = pb.Progress(epoch=done + 1, epochs=of, step=done * 10, steps_per_epoch=10, loss=0.25)
    progress.samples_per_second = 123.4
    return pb.Job(name="jobs/x", state=state, epochs=epochs(done), progress=progress, **fields)


def test_an_epoch_is_a_line_that_fits() -> None:
    line = epoch_line(epochs(1)[0])
    assert line == "epoch   1  train loss 2.0000  val loss 1.0000  accuracy  50.00%  1.5 s  best"
    assert len(line) < 80


def test_every_thing_is_said_once() -> None:
    news = News()
    said = [
        list(news.lines(seen))
        for seen in (
            job(State.STATE_PENDING, waiting="waits for its turn"),
            job(State.STATE_PENDING, waiting="waits for its turn"),
            job(State.STATE_RUNNING, done=1),
            job(State.STATE_RUNNING, done=1),
            job(State.STATE_RUNNING, done=2, restarts=1),
            job(State.STATE_FINISHING, done=4, restarts=1),
            job(State.STATE_SUCCEEDED, done=4, restarts=1),
        )
    ]
    lines = [epoch_line(epoch) for epoch in epochs(4)]
    assert said == [
        ["jobs/x is pending", "jobs/x waits for its turn"],
        [],
        ["jobs/x is running", lines[0]],
        [],
        ["jobs/x: a dead worker was replaced, 1 so far", lines[1]],
        [lines[2], lines[3], "jobs/x is finishing"],
        ["jobs/x has succeeded"],
    ]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (State.STATE_FAILED, "jobs/x has failed"),
        (State.STATE_CANCELLED, "jobs/x was cancelled"),
        (State.STATE_CANCELLING, "jobs/x is being cancelled"),
        (State.STATE_PAUSING, "jobs/x is being paused"),
        (State.STATE_PAUSED, "jobs/x is paused"),
    ],
)
def test_ends(state: "State.ValueType", said: str) -> None:
    assert list(News().lines(job(state, done=1)))[-1] == said


def test_the_headline_says_what_a_job_does() -> None:
    starting = job(State.STATE_STARTING)
    for phase in ("starting", "starting", "training"):
        starting.workers.add(phase=phase)
    assert headline(starting) == "starting  2 workers starting  1 worker training"
    running = headline(job(State.STATE_RUNNING, done=2))
    assert running == "running  epoch 3/4  loss 0.2500  accuracy 75.00%  123 samples/s"
    finishing = job(State.STATE_FINISHING, done=4)
    finishing.workers.add(rank=1, phase="ended")
    finishing.workers.add(rank=0, phase="exporting")
    assert headline(finishing).startswith("finishing  exporting  epoch")
    assert "samples/s" not in headline(finishing)
    assert headline(pb.Job(state=State.STATE_PENDING, waiting="waits")) == "pending  waits"


STORY = [
    job(State.STATE_STARTING),
    *(job(State.STATE_RUNNING, done=done) for done in range(5)),
    job(State.STATE_SUCCEEDED, done=4),
]


async def told(story: list[pb.Job]) -> AsyncIterator[pb.Job]:
    for seen in story:
        yield seen


async def test_without_a_terminal_there_are_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    last = await follow(told(STORY))
    assert state_name(last) == "succeeded"
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["jobs/x is starting", "jobs/x is running"]
    assert [line[:9] for line in lines[2:6]] == [f"epoch   {number}" for number in range(1, 5)]
    assert lines[6:] == ["jobs/x has succeeded"]


async def test_a_terminal_has_a_bar_too(capsys: pytest.CaptureFixture[str], narrow: Callable[[int], None]) -> None:
    narrow(60)
    await follow(told(STORY))
    out = capsys.readouterr().out
    assert "jobs/x is running" in out
    assert "succeeded  epoch 5/4  loss 0.2500  accuracy 87.50%" in out
    assert "━━━" in out
    assert "100%" in out


def test_a_picture_of_the_curve(tmp_path: Path) -> None:
    for name, start in (("x.png", b"\x89PNG"), ("x.SVG", b"<?xml")):
        curve.plot(job(State.STATE_SUCCEEDED, done=4), tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    curve.plot(job(State.STATE_RUNNING, done=1), tmp_path / "one.png")
    with pytest.raises(FailedPrecondition, match="no finished epoch"):
        curve.plot(job(State.STATE_RUNNING), tmp_path / "none.png")
    with pytest.raises(OSError, match="No such file"):
        curve.plot(job(State.STATE_RUNNING, done=1), tmp_path / "no" / "x.png")
