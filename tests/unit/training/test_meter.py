"""Progress adds up over ranks, replaced workers and restarts."""

import math

from tidemill.training.jobs import Progress
from tidemill.training.meter import Beat, Meter


def beat(step: int, samples: int, loss: float = 1.0, per_epoch: int = 10) -> Beat:
    return Beat(phase="training", step=step, steps_per_epoch=per_epoch, loss=loss, samples=samples)


def test_ranks_add_up() -> None:
    meter = Meter(3, Progress(epochs=3))
    meter.beat(0, 0, beat(4, 40, loss=1.0), 0.0)
    meter.beat(1, 0, beat(5, 50, loss=2.0), 0.0)
    found = meter.progress()
    assert (found.step, found.samples, found.loss, found.epoch, found.epochs) == (5, 90, 1.5, 1, 3)
    meter.beat(0, 0, beat(30, 300), 1.0)
    assert meter.progress().epoch == 3, "the last step belongs to the last epoch"


def test_what_a_replaced_worker_has_used_still_counts() -> None:
    meter = Meter(3, Progress(samples=1000, step=20, steps_per_epoch=10, loss=0.5, epoch=3))
    assert meter.progress().samples == 1000
    assert meter.progress().loss == 0.5
    meter.beat(0, 0, beat(22, 20), 0.0)
    meter.beat(0, 1, Beat(phase="starting"), 1.0)
    assert meter.progress().samples == 1020
    assert meter.progress().step == 20, "it never goes below what was reached before"
    meter.beat(0, 1, beat(23, 30), 2.0)
    assert meter.progress().samples == 1050


def test_the_steps_of_a_job_whose_ranks_go_apart_are_those_of_rank_0() -> None:
    meter = Meter(3, Progress(epochs=3, step=2), rounds=False)
    meter.beat(1, 0, beat(30, 300), 0.0)
    assert (meter.progress().step, meter.progress().epoch) == (2, 1)
    meter.beat(0, 0, beat(12, 120), 0.0)
    found = meter.progress()
    assert (found.step, found.epoch, found.samples) == (12, 2, 420)


def test_the_rate_is_that_of_late() -> None:
    meter = Meter(100, Progress())
    for second in range(100):
        meter.beat(0, 0, beat(second, second * 10), float(second))
        meter.beat(1, 0, beat(second, second * 10), float(second))
    assert math.isclose(meter.progress().samples_per_second, 20, rel_tol=0.2)
    for second in range(100, 120):
        meter.beat(0, 0, beat(100, 1000), float(second))
        meter.beat(1, 0, beat(100, 1000), float(second))
    assert meter.progress().samples_per_second == 0


def test_a_loss_that_is_not_finite_is_not_shown() -> None:
    meter = Meter(1, Progress())
    meter.beat(0, 0, beat(1, 1, loss=math.nan), 0.0)
    assert meter.progress() == meter.progress(), "progress can be compared"
    assert meter.progress().loss == 0.0
