"""What has happened to a job keeps its number, whatever happens later, and is in order."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill import errors
from tidemill.training.epochs import Epoch
from tidemill.training.history import events
from tidemill.training.jobs import MAX_CHANGES, NEXT, Job, State, begun, move
from tidemill.training.spec import JobSpec


def fresh() -> Job:
    job = Job(id="j", uid="u", spec=JobSpec(), created=1.0)
    return replace(job, changes=begun(job))


def finished(job: Job) -> Job:
    """With one more epoch."""
    return replace(job, epochs=(*job.epochs, Epoch(epoch=len(job.epochs) + 1, reported=5.0)))


def names(job: Job, first: int = 0) -> list[str]:
    return [
        event.state.value if event.state else f"epoch {event.epoch.epoch if event.epoch else 0}"
        for event in events(job, first)
    ]


def test_states_and_epochs_in_the_order_in_which_they_came() -> None:
    job = move(move(fresh(), State.STARTING, 2.0), State.RUNNING, 3.0)
    job = move(finished(finished(job)), State.FINISHING, 6.0)
    assert names(job) == ["pending", "starting", "running", "epoch 1", "epoch 2", "finishing"]
    assert [event.number for event in events(job)] == list(range(6))
    assert [event.time for event in events(job)] == [1.0, 2.0, 3.0, 5.0, 5.0, 6.0]
    assert names(job, 4) == ["epoch 2", "finishing"]
    assert names(job, 6) == names(job, 99) == []


@given(st.lists(st.one_of(st.none(), st.sampled_from(State)), max_size=40))
def test_numbers_never_change(story: list[State | None]) -> None:
    job, seen = fresh(), events(fresh())
    for item in story:
        if item is None:
            job = finished(job)
        elif item in NEXT[job.state]:
            job = move(job, item, job.changes[-1].time + 1)
        after = events(job)
        assert after[: len(seen)] == seen
        assert len(after) <= len(seen) + 1
        seen = after
    assert [event.number for event in seen] == list(range(len(seen)))
    for first in range(len(seen)):
        assert events(job, first) == seen[first:]


def test_what_is_long_ago_is_forgotten_and_says_so() -> None:
    job = finished(move(move(fresh(), State.STARTING, 2.0), State.RUNNING, 3.0))
    everything = events(job)
    while len(job.changes) < MAX_CHANGES or job.changes[0].number < 8:
        for state in (State.PAUSING, State.PAUSED, State.PENDING, State.STARTING, State.RUNNING):
            before = len(job.changes)
            job = finished(move(job, state, 9.0))
            assert len(job.changes) == min(before + 1, MAX_CHANGES)
            everything += events(job)[-2:]
    kept = events(job)
    assert kept == everything[-len(kept) :]
    assert kept[0].number > 0
    assert events(job, kept[0].number + 3) == kept[3:]
    with pytest.raises(errors.OutOfRange) as forgotten:
        events(job, kept[0].number - 1)
    assert forgotten.value.metadata["first"] == str(kept[0].number)


def test_jobs_of_older_releases_have_a_history_too() -> None:
    old = Job(id="j", uid="u", spec=JobSpec(), state=State.RUNNING, created=1.0, epochs=(Epoch(epoch=1),))
    assert names(old) == ["running", "epoch 1"]
    assert names(move(old, State.FAILED, 2.0)) == ["running", "epoch 1", "failed"]
    over = replace(old, state=State.FAILED)
    assert names(over) == ["epoch 1", "failed"]
