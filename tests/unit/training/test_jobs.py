"""A job changes its state only in the ways that there are."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill import errors, names
from tidemill.training.jobs import (
    MAX_ERROR,
    NEXT,
    Job,
    Resize,
    State,
    Worker,
    cancel,
    given_up,
    hold,
    move,
    pause,
    resize,
    resized,
    resume,
    shortened,
)
from tidemill.training.spec import Consistency, JobSpec

JOB = Job(id="a", uid="u", spec=JobSpec())
OVER = {State.SUCCEEDED, State.FAILED, State.CANCELLED}
Step = State | Callable[[Job, float], Job]


def resumed(job: Job, now: float) -> Job:
    return resume(job, 0, now)


@given(st.lists(st.sampled_from([*State, cancel, pause, resumed]), max_size=30))
def test_only_legal_transitions_whatever_is_tried(steps: list[Step]) -> None:
    """Tries states and verbs in any order: what is refused changes nothing, what has ended stays so."""
    job, seen = JOB, [State.PENDING]
    for now, wanted in enumerate(steps, start=1):
        before = job
        try:
            job = move(job, wanted, now) if isinstance(wanted, State) else wanted(job, now)
        except errors.FailedPrecondition:
            assert wanted not in NEXT[before.state]
            continue
        if job is before:
            assert not isinstance(wanted, State), "verbs may be repeated"
            continue
        seen.append(job.state)
        assert job.state in NEXT[before.state]
        assert bool(job.ended) == (job.state in OVER)
    if not {State.PAUSED, State.PAUSING} & set(seen):
        assert len(seen) <= 6, "no state is entered twice"
    assert not set(seen[:-1]) & OVER, "nothing follows the end"


@given(st.sampled_from(State))
def test_cancelling_twice_is_cancelling_once(state: State) -> None:
    once = cancel(replace(JOB, state=state), 1)
    assert cancel(once, 2) == once
    if state not in OVER:
        assert once.state in (State.CANCELLING, State.CANCELLED)


def test_every_state_can_be_reached_and_left_to_an_end() -> None:
    reached, ahead = {State.PENDING}, [State.PENDING]
    while ahead:
        for state in NEXT[ahead.pop()] - reached:
            reached.add(state)
            ahead.append(state)
    assert reached == set(State)
    assert {state for state in State if not NEXT[state]} == OVER
    for state in set(State) - OVER:
        assert NEXT[state] & {State.CANCELLING, State.CANCELLED}, "everything can be cancelled"


def test_a_job_that_registers_its_version_is_not_cancelled() -> None:
    with pytest.raises(errors.FailedPrecondition) as late:
        cancel(replace(JOB, state=State.FINISHING, committed=True), 1)
    assert late.value.reason == "JOB_COMMITTED"


def test_group_names_are_valid_and_differ_for_every_job_there_ever_was() -> None:
    first = Job(id="a." * 40, uid="1" * 16, spec=JobSpec())
    second = replace(first, uid="2" * 16)
    assert names.split(first.group, "groups") != names.split(second.group, "groups")


def test_long_errors_keep_their_beginning_and_their_end() -> None:
    text = "begin" + "x" * 10_000 + "end"
    cut = move(replace(JOB, state=State.RUNNING), State.FAILED, 1, error=text).error
    assert len(cut) <= MAX_ERROR
    assert cut.startswith("begin")
    assert cut.endswith("end")
    assert shortened("short") == "short"


def test_a_paused_job_goes_on_from_what_was_kept_elsewhere() -> None:
    worker = Worker(rank=0, attempt=2, pid=7, handle="0.2", token="t", samples=9, phase="training")
    running = replace(JOB, spec=JobSpec(shards=2), state=State.RUNNING, owner="o", shards=("a:1", "b:2"))
    running = replace(running, workers=(worker,), checkpoint="c", checkpoint_step=5, checkpoint_samples=40)
    pausing = pause(running, 1)
    assert (pausing.state, pausing.held) == (State.PAUSING, False), "its state is still to be kept"
    assert pause(pausing, 2) is pausing
    with pytest.raises(errors.FailedPrecondition) as soon:
        resume(pausing, 0, 2)
    assert soon.value.reason == "JOB_PAUSING"
    held = hold(pausing, 3)
    assert (held.state, held.owner, held.shards) == (State.PAUSED, "", ())
    assert held.group != running.group, "what is left of the old group is never taken for the new one"
    assert (held.progress.step, held.progress.samples) == (5, 40)
    assert held.workers == (replace(worker, pid=0, handle="", token="", samples=0, phase="ended"),)
    on = resume(held, 3, 4)
    assert (on.state, on.spec.shards, on.checkpoint) == (State.PENDING, 3, "c")
    assert resume(on, 3, 5) is on
    assert resume(held, 0, 4).spec.shards == 2


def test_early_and_late_pauses() -> None:
    assert pause(JOB, 1).state is State.PAUSED
    assert pause(replace(JOB, state=State.STARTING), 1).held, "there is nothing to keep"
    assert pause(replace(JOB, state=State.RUNNING, spec=JobSpec(shards=1)), 1).held, "it goes back to its checkpoint"
    assert not pause(replace(JOB, state=State.RUNNING), 1).held, "its workers hold the state"
    for state in (State.FINISHING, State.CANCELLING, *OVER):
        with pytest.raises(errors.FailedPrecondition) as late:
            pause(replace(JOB, state=state), 1)
        assert late.value.reason == "JOB_NOT_PAUSABLE"
        assert state.value in late.value.message


@pytest.mark.parametrize(
    ("state", "shards", "reason"),
    [
        (State.CANCELLED, 0, "JOB_NOT_PAUSED"),
        (State.CANCELLING, 0, "JOB_NOT_PAUSED"),
        (State.RUNNING, 2, "JOB_NOT_PAUSED"),
        (State.PAUSED, 65, "INVALID_ARGUMENT"),
        (State.PAUSED, -1, "INVALID_ARGUMENT"),
    ],
)
def test_what_cannot_be_resumed(state: State, shards: int, reason: str) -> None:
    with pytest.raises(errors.TidemillError) as refused:
        resume(replace(JOB, state=state, spec=JobSpec(shards=1)), shards, 1)
    assert refused.value.reason == reason
    assert resume(replace(JOB, state=State.RUNNING, spec=JobSpec(shards=1)), 1, 1).state is State.RUNNING


def test_workers_that_hold_their_state_have_no_shards_to_choose() -> None:
    with pytest.raises(errors.Invalid) as refused:
        resume(replace(JOB, state=State.PAUSED), 2, 1)
    assert refused.value.reason == "NO_SHARDS"


TWO = replace(JOB, spec=JobSpec(workers=2, shards=1, strategy="parameter_server"))


@pytest.mark.parametrize("state", list(State))
def test_when_workers_and_shards_can_be_changed(state: State) -> None:
    job = replace(TWO, state=state)
    if state in (State.STARTING, State.RUNNING):
        asked = resize(job, 3, 0)
        assert asked.resize == Resize(workers=3, shards=1)
        assert asked.spec == job.spec, "it is done when it has been done"
        assert resize(asked, 3, 1) is asked
        with pytest.raises(errors.FailedPrecondition) as refused:
            resize(asked, 4, 0)
        assert refused.value.reason == "JOB_RESIZING"
    elif state in (State.PENDING, State.PAUSED):
        changed = resize(job, 3, 4)
        assert (changed.spec.workers, changed.spec.shards, changed.resize) == (3, 4, None)
    else:
        with pytest.raises(errors.FailedPrecondition) as refused:
            resize(job, 3, 0)
        assert refused.value.reason == "JOB_NOT_RESIZABLE"
    assert resize(job, 2, 1) is job, "it has them"


def test_workers_that_rest_at_different_steps_stay_as_many() -> None:
    spec = replace(TWO.spec, consistency=Consistency(mode="asp"))
    job = replace(TWO, spec=spec, state=State.PAUSED, checkpoint="c", checkpoint_step=9)
    assert resize(job, 0, 3).spec.shards == 3
    with pytest.raises(errors.FailedPrecondition) as refused:
        resize(job, 3, 0)
    assert refused.value.reason == "JOB_NOT_RESIZABLE"


def test_a_change_is_made_with_a_new_group() -> None:
    job = replace(TWO, state=State.RUNNING, shards=("a:1",), resize=Resize(workers=1, shards=2, places=("a:1", "b:1")))
    done = resized(job)
    assert (done.spec.workers, done.spec.shards, done.shards, done.resize) == (1, 2, ("a:1", "b:1"), None)
    assert done.group != job.group


def test_a_change_goes_on_after_a_roll_back_and_is_made_by_a_pause() -> None:
    asked = Resize(workers=3, shards=2, places=("a:1", "b:1"))
    job = replace(TWO, state=State.PAUSING, shards=("a:1",), resize=asked)
    assert given_up(job).resize == Resize(workers=3, shards=2), "the shards may be gone"
    rest = hold(job, 5.0)
    assert (rest.spec.workers, rest.spec.shards, rest.resize) == (3, 2, None)
    live = hold(replace(job, spec=replace(job.spec, consistency=Consistency(mode="asp"))), 5.0)
    assert (live.spec.workers, live.spec.shards, live.resize) == (2, 2, None)


def test_workers_without_a_parameter_server_have_no_shards_to_change() -> None:
    job = replace(JOB, spec=JobSpec(workers=2, strategy="all_reduce"), state=State.RUNNING)
    assert resize(job, 3, 0).resize == Resize(workers=3, shards=0)
    with pytest.raises(errors.Invalid):
        resize(job, 0, 2)
