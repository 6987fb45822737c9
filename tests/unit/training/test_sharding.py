"""Who takes which samples when: exact whatever the numbers are."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.errors import Invalid
from tidemill.training.worker.sharding import Schedule, derive, shuffled, split

SCHEDULES = st.builds(
    Schedule,
    samples=st.integers(1, 400),
    batch_size=st.integers(1, 150),
    workers=st.integers(1, 9),
    seed=st.integers(-(2**63), 2**63 - 1),
)


class TestSchedule:
    @given(SCHEDULES, st.integers(1, 5))
    @settings(max_examples=150, deadline=None)
    def test_every_sample_is_used_exactly_once_an_epoch(self, schedule: Schedule, epoch: int) -> None:
        order = schedule.order(epoch)
        used: list[int] = []
        for step in range((epoch - 1) * schedule.steps_per_epoch, epoch * schedule.steps_per_epoch):
            assert schedule.epoch(step) == epoch
            parts = [schedule.part(order, step, rank) for rank in range(schedule.workers)]
            sizes = [len(part) for part in parts]
            assert 1 <= sum(sizes) <= schedule.batch_size
            assert max(sizes) - min(sizes) <= 1
            used.extend(np.concatenate(parts).tolist())
        assert sorted(used) == list(range(schedule.samples))

    @given(SCHEDULES, st.data())
    @settings(max_examples=100, deadline=None)
    def test_what_ranks_have_used_is_counted_wherever_they_are(self, schedule: Schedule, data: st.DataObject) -> None:
        steps = [data.draw(st.integers(0, 3 * schedule.steps_per_epoch)) for _ in range(schedule.workers)]
        taken = sum(schedule.counts(step)[rank] for rank, done in enumerate(steps) for step in range(done))
        assert schedule.used(steps) == taken

    @given(SCHEDULES, st.integers(0, 2000))
    @settings(max_examples=100, deadline=None)
    def test_the_batch_of_a_step_does_not_depend_on_the_number_of_workers(self, schedule: Schedule, step: int) -> None:
        alone = Schedule(samples=schedule.samples, batch_size=schedule.batch_size, workers=1, seed=schedule.seed)
        order = schedule.order(schedule.epoch(step))
        together = np.concatenate([schedule.part(order, step, rank) for rank in range(schedule.workers)])
        assert together.tolist() == alone.part(alone.order(alone.epoch(step)), step, 0).tolist()

    def test_epochs_and_seeds_have_orders_of_their_own(self) -> None:
        one = Schedule(samples=100, batch_size=10, workers=2, seed=1)
        other = Schedule(samples=100, batch_size=10, workers=2, seed=2)
        orders = [one.order(1), one.order(2), other.order(1)]
        assert len({tuple(order.tolist()) for order in orders}) == 3
        assert one.order(1).tolist() == one.order(1).tolist()

    def test_another_process_makes_the_same_order(self) -> None:
        script = (
            "from tidemill.training.worker.sharding import *;"
            "print(Schedule(samples=50, batch_size=8, workers=3, seed=-7).order(3).tolist(), derive(5, 'step', 1, 2))"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        here = Schedule(samples=50, batch_size=8, workers=3, seed=-7).order(3).tolist()
        assert done.stdout.strip() == f"{here} {derive(5, 'step', 1, 2)}"


def test_seeds_of_different_uses_differ_and_fit_into_63_bits() -> None:
    found = {derive(seed, "step", rank, step) for seed in range(3) for rank in range(5) for step in range(50)}
    assert len(found) == 3 * 5 * 50
    assert all(0 <= value < 2**63 for value in found)
    assert derive(1, "step", 1, 11) != derive(1, "step", 11, 1)


class TestSplit:
    @given(
        st.lists(st.integers(3, 60), min_size=1, max_size=6),
        st.floats(0.001, 0.5),
        st.floats(0.001, 0.499),
        st.integers(0, 2**32),
    )
    @settings(max_examples=150, deadline=None)
    def test_parts_are_disjoint_complete_and_stratified(
        self, sizes: list[int], validation: float, test: float, seed: int
    ) -> None:
        y = np.repeat(np.arange(len(sizes)), sizes)[shuffled(sum(sizes), seed)]
        parts = split(y, validation, test, seed)
        every = np.concatenate([parts.train, parts.validation, parts.test])
        assert sorted(every.tolist()) == list(range(len(y)))
        for label, size in enumerate(sizes):
            for part, share in ((parts.validation, validation), (parts.test, test)):
                members = int((y[part] == label).sum())
                assert members >= 1 or size * share < 1
                assert abs(members - size * share) <= 1.01
            assert (y[parts.train] == label).any()

    def test_the_seed_alone_decides(self) -> None:
        y = np.arange(300) % 3
        same, again, other = split(y, 0.2, 0.2, 1), split(y, 0.2, 0.2, 1), split(y, 0.2, 0.2, 2)
        assert same.test.tolist() == again.test.tolist()
        assert same.test.tolist() != other.test.tolist()

    def test_samples_that_are_set_apart_already_leave_more_to_train(self) -> None:
        parts = split(np.arange(100) % 2, 0.1, 0.0, 1)
        assert (len(parts.train), len(parts.validation), len(parts.test)) == (90, 10, 0)

    def test_a_class_of_two_only_trains(self) -> None:
        y = np.array([0] * 30 + [1] * 2)
        parts = split(y, 0.1, 0.1, 1)
        assert (y[parts.train] == 1).sum() == 2

    def test_classes_that_are_all_tiny_are_refused(self) -> None:
        with pytest.raises(Invalid, match="three samples"):
            split(np.arange(50), 0.1, 0.1, 1)
