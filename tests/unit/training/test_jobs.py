"""A job changes its state only in the ways that there are."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill import errors, names
from tidemill.training.jobs import MAX_ERROR, NEXT, Job, State, cancel, move, shortened
from tidemill.training.spec import JobSpec

JOB = Job(id="a", uid="u", spec=JobSpec())
OVER = {State.SUCCEEDED, State.FAILED, State.CANCELLED}


@given(st.lists(st.one_of(st.sampled_from(State), st.none()), max_size=30))
def test_only_legal_transitions_whatever_is_tried(steps: list[State | None]) -> None:
    """Tries states in any order (None = cancel): what is refused changes nothing, what has ended stays so."""
    job, seen = JOB, [State.PENDING]
    for now, wanted in enumerate(steps, start=1):
        before = job
        try:
            job = cancel(job, now) if wanted is None else move(job, wanted, now)
        except errors.FailedPrecondition:
            assert wanted not in NEXT[before.state]
            continue
        if job is before:
            assert wanted is None
            assert before.is_over or before.state is State.CANCELLING
            continue
        seen.append(job.state)
        assert job.state in NEXT[before.state]
        assert bool(job.ended) == (job.state in OVER)
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
