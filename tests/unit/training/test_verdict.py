"""What a job waits for, in a sentence, for each situation that it can be in."""

from dataclasses import replace
from typing import Any

import pytest

from tidemill.training.diagnosis.sights import Case, Condition, MeetingSight, MemberSight, ShardSight, WorkerSight
from tidemill.training.diagnosis.verdict import Verdict, judge
from tidemill.training.epochs import Result
from tidemill.training.jobs import Job, Progress, State
from tidemill.training.spec import Component, JobSpec

A, B = "10.0.0.1:7104", "10.0.0.2:7114"


def job(state: State = State.RUNNING, *, workers: int = 3, shards: int = 2, **fields: Any) -> Job:
    spec = JobSpec(model=Component(name="mlp"), workers=workers, shards=shards)
    given: dict[str, Any] = {"shards": (A, B)[:shards], "progress": Progress(epochs=10, steps_per_epoch=10)}
    return Job(id="j", uid="u", spec=spec, state=state, **(given | fields))


def worker(rank: int, **fields: Any) -> WorkerSight:
    given: dict[str, Any] = {
        "condition": Condition.ALIVE, "phase": "training", "step": 17, "pid": 100 + rank,
        "silence": 0.4, "at_step": 0.2, "pace": 0.1,
    }  # fmt: skip
    return WorkerSight(rank=rank, **(given | fields))


def shard(address: str, *clocks: int, waiting: tuple[int, ...] = (), **fields: Any) -> ShardSight:
    members = tuple(
        MemberSight(worker=rank, clock=clock, waits_for="version 18" if rank in waiting else "")
        for rank, clock in enumerate(clocks)
    )
    given: dict[str, Any] = {"has_part": True, "is_ready": True, "version": min(clocks, default=0), "members": members}
    return ShardSight(address=address, **(given | fields))


def shards(*clocks: int, **fields: Any) -> tuple[ShardSight, ...]:
    return (shard(A, *clocks, **fields), shard(B, *clocks, **fields))


ON_STEP = (worker(0), worker(1), worker(2))
STOPPED = tuple(worker(rank, at_step=3.0) for rank in range(3))
OF_ONE_WAITED_FOR = shards(18, 17, 18, waiting=(0, 2))


def verdict(text: str, *culprits: int, stuck: bool = True) -> Verdict:
    return Verdict(text=text, is_stuck=stuck, culprits=culprits)


def with_one(**fields: Any) -> tuple[WorkerSight, ...]:
    return (worker(0), worker(1, **fields), worker(2))


def test_a_stopped_worker() -> None:
    silent = with_one(condition=Condition.SILENT, silence=42.3, at_step=43.0)
    said = "worker 1, last heard of 42 s ago, at step 17; workers 0 and 2 are at step 18"
    case = Case(job=job(), workers=silent, shards=OF_ONE_WAITED_FOR)
    assert judge(case) == verdict(f"waits for {said}", 1)
    free = tuple(replace(each, mode="asp") for each in shards(40, 17, 39))
    said = "worker 1, last heard of 42 s ago, at step 17; worker 2 is at step 39, worker 0 is at step 40"
    assert judge(Case(job=job(), workers=silent, shards=free)) == verdict(f"goes on without {said}", 1, stuck=False)


def test_a_dead_worker_and_one_that_follows_it() -> None:
    dead = with_one(condition=Condition.ENDED, phase="ended", pid=0)
    case = Case(job=job(), workers=dead, shards=OF_ONE_WAITED_FOR)
    said = "worker 1, whose process has ended at step 17 and is to be replaced; workers 0 and 2 are at step 18"
    assert judge(case) == verdict(f"waits for {said}", 1)
    new = with_one(condition=Condition.STARTING, phase="starting", step=0, silence=2.5)
    case = Case(job=job(), workers=new, shards=OF_ONE_WAITED_FOR)
    said = "worker 1, started 2.5 s ago and not heard of yet; workers 0 and 2 are at step 18"
    assert judge(case) == verdict(f"waits for {said}", 1, stuck=False)
    both = tuple(worker(rank, condition=Condition.STARTING, step=0, silence=2.5) for rank in range(2))
    case = Case(job=job(State.STARTING, workers=2), workers=both)
    assert judge(case).text == "waits for workers 0 and 1, started 2.5 s ago and not heard of yet"
    late = with_one(condition=Condition.STARTING, phase="starting", step=0, silence=99.0)
    assert judge(Case(job=job(), workers=late, shards=OF_ONE_WAITED_FOR)).is_stuck
    absent = with_one(condition=Condition.ABSENT, phase="starting", pid=0, silence=1.0)
    assert judge(Case(job=job(), workers=absent, shards=OF_ONE_WAITED_FOR)).text.startswith(
        "waits for worker 1, whose process is not started yet; "
    )


def test_several_that_are_gone() -> None:
    gone = (worker(0), worker(1, condition=Condition.ENDED), worker(2, condition=Condition.SILENT, silence=700.0))
    found = judge(Case(job=job(), workers=gone, shards=shards(18, 17, 17)))
    assert found.culprits == (1, 2)
    assert found.text == (
        "waits for worker 2, last heard of 12 min ago, at step 17 and worker 1, whose process has ended at step 17 and"
        " is to be replaced; worker 0 is at step 18"
    )


def test_a_slow_worker() -> None:
    case = Case(job=job(), workers=with_one(at_step=12.0), shards=OF_ONE_WAITED_FOR)
    said = "worker 1, training at step 17 for 12 s (its steps take 0.1 s); workers 0 and 2 are at step 18"
    assert judge(case) == verdict(f"waits for {said}", 1)
    used_to_it = with_one(at_step=12.0, pace=10.0)
    assert not judge(Case(job=job(), workers=used_to_it, shards=OF_ONE_WAITED_FOR)).is_stuck
    evaluating = (worker(0, phase="evaluating", at_step=12.0), worker(1), worker(2))
    case = Case(job=job(), workers=evaluating, shards=shards(17, 18, 18, waiting=(1, 2)))
    assert (judge(case).culprits, judge(case).is_stuck) == ((0,), False), "that may take its time"


def test_a_push_that_has_come_to_one_shard_alone() -> None:
    behind = shard(B, 18, 17, 18, waiting=(0, 2))
    members = tuple(replace(m, in_flight=4096 if m.worker == 1 else 0) for m in behind.members)
    found = (shard(A, 18, 18, 18), replace(behind, members=members))
    case = Case(job=job(), workers=with_one(at_step=32.0, pace=0.0), shards=found)
    assert judge(case).text == (
        f"waits for worker 1, training at step 17 for 32 s, whose push has not all come to shard {B}, 4096 bytes of its"
        " push under way; workers 0 and 2 are at step 18"
    )
    assert case.workers[1].in_flight == 4096
    assert (case.workers[0].waits_for, case.workers[0].step) == ("version 18", 18)


def test_a_shard_that_does_not_answer() -> None:
    lost = (shard(A, 18, 18, 17), ShardSight(address=B, reachable=False, error="refused"))
    case = Case(job=job(), workers=STOPPED, shards=lost)
    said = f"shard {B}, which does not answer; worker 2 is at step 17, workers 0 and 1 are at step 18"
    assert judge(case) == verdict(f"waits for {said}")
    another_took_over = Case(job=job(), workers=ON_STEP, shards=lost)
    assert judge(another_took_over) == verdict(f"goes on without {said}", stuck=False)
    both = tuple(ShardSight(address=address, reachable=False) for address in (A, B))
    case = Case(job=job(), workers=STOPPED, shards=both)
    assert judge(case).text == f"waits for shards {A} and {B}, which do not answer; workers 0, 1 and 2 are at step 17"


def test_a_shard_without_the_group() -> None:
    lost = (shard(A, 18, 18, 18), ShardSight(address=B))
    text = judge(Case(job=job(), workers=STOPPED, shards=lost)).text
    assert text.startswith(f"waits for shard {B}, which has no part of its parameters: they were lost there, ")
    empty = (shard(A, 18, 18, 18), shard(B, 0, 0, 0, is_ready=False))
    assert "which has no values of its parameters" in judge(Case(job=job(), workers=STOPPED, shards=empty)).text


def test_a_group_that_is_about_to_be_made_is_not_missed() -> None:
    beginning = tuple(worker(rank, phase="starting", step=0) for rank in range(3))
    nothing = (ShardSight(address=A), ShardSight(address=B))
    found = judge(Case(job=job(State.STARTING), workers=beginning, shards=nothing))
    assert found == verdict("is not stuck: its workers are starting", stuck=False)


def test_a_job_without_shards_to_go_to() -> None:
    wanting = job(State.STARTING, shards=2, waiting="waits for 2 parameter shards, 1 is live")
    assert judge(Case(job=replace(wanting, shards=()))) == verdict("waits for 2 parameter shards, 1 is live")
    preparing = judge(Case(job=replace(wanting, shards=(), waiting="")))
    assert preparing == verdict("is being prepared: shards for its parameters are being chosen", stuck=False)


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ((), "waits to be taken up by the training service that leads"),
        (("jobs/a",), "waits for its turn: jobs/a comes before it"),
        (("jobs/a", "jobs/b"), "waits for its turn: jobs/a and another job come before it"),
        (("jobs/a", "jobs/b", "jobs/c"), "waits for its turn: jobs/a and 2 more jobs come before it"),
    ],
)
def test_a_job_that_waits_for_its_turn(before: tuple[str, ...], said: str) -> None:
    assert judge(Case(job=job(State.PENDING), before=before)) == verdict(said, stuck=False)


@pytest.mark.parametrize(
    ("state", "fields", "said"),
    [
        (State.SUCCEEDED, {}, "has succeeded: it waits for nothing"),
        (State.CANCELLED, {}, "was cancelled: it waits for nothing"),
        (State.FAILED, {"error": "the loss is nan\nat step 7"}, "has failed: the loss is nan"),
        (State.PAUSED, {}, "is paused, and waits to be resumed"),
        (State.PAUSING, {"held": True}, "is being paused: all that it is made of is kept, and its workers end"),
        (
            State.FINISHING,
            {"result": Result()},
            "waits for its version to be registered; should that take long, its log says why",
        ),
        (State.FINISHING, {}, "is not stuck: its training is over, and worker 0 is exporting, for 0.2 s"),
    ],
)
def test_a_job_at_rest_or_at_its_end(state: State, fields: dict[str, Any], said: str) -> None:
    gone = (worker(0, phase="exporting"), worker(1, condition=Condition.ENDED), worker(2, condition=Condition.ENDED))
    assert judge(Case(job=job(state, **fields), workers=gone)) == verdict(said, stuck=False)


def test_a_job_that_is_being_cancelled() -> None:
    left = (worker(0), worker(1, pid=0), worker(2))
    found = judge(Case(job=job(State.CANCELLING), workers=left))
    assert found == verdict("is being cancelled, and waits for workers 0 and 2 to end", 0, 2, stuck=False)
    assert judge(Case(job=job(State.CANCELLING))).text == "is being cancelled"


def test_workers_that_have_not_met() -> None:
    meeting = MeetingSight(generation=3, present=(0, 1), missing=(2,), is_open=True)
    late = (worker(0, phase="starting"), worker(1), worker(2, phase="starting", at_step=40.0))
    case = Case(job=job(shards=0), workers=late, meeting=meeting)
    said = "worker 2 (starting), which has not come to meeting 3 of its workers; workers 0 and 1 are there"
    assert judge(case) == verdict(f"waits for {said}", 2)
    nobody = replace(meeting, present=(), missing=(0, 1, 2))
    assert judge(Case(job=job(shards=0), workers=ON_STEP, meeting=nobody)).text.endswith("; nobody is there")


def test_nobody_makes_a_step() -> None:
    all_met = MeetingSight(generation=1, present=(0, 1, 2), is_open=True)
    still = tuple(worker(rank, at_step=30.0 + rank) for rank in range(3))
    found = judge(Case(job=job(shards=0), workers=still, meeting=all_met))
    assert found == verdict("has not made a step for 30 s; workers 0, 1 and 2 are at step 17")
    waiting = shards(17, 17, 17, waiting=(0, 1, 2))
    assert judge(Case(job=job(), workers=still, shards=waiting)).text.endswith("; they wait for version 18")


def test_nothing_is_stuck() -> None:
    found = judge(Case(job=job(), workers=ON_STEP, shards=shards(17, 17, 17)))
    assert found == verdict("is not stuck: workers 0, 1 and 2 are at step 17 of 100", stuck=False)
    found = judge(Case(job=job(), workers=ON_STEP, shards=OF_ONE_WAITED_FOR))
    assert found.text == (
        "is not stuck: worker 1 is at step 17, workers 0 and 2 are at step 18;"
        " at this moment the others wait for worker 1"
    )
    met = MeetingSight(generation=1, present=(0, 1, 2), is_open=True)
    assert not judge(Case(job=job(shards=0), workers=ON_STEP, meeting=met)).is_stuck


def test_workers_without_which_rounds_close() -> None:
    silent = (worker(0, step=40), worker(1, condition=Condition.SILENT, silence=42.3, step=5), worker(2, step=40))
    found = judge(Case(job=job(), workers=silent, shards=shards(40, 40, 40, spares=1)))
    said = "worker 1, last heard of 42 s ago, at step 5; workers 0 and 2 are at step 40"
    assert found == verdict(f"goes on without {said}", 1, stuck=False)
    two = (worker(0), *(worker(rank, condition=Condition.SILENT, silence=42.3) for rank in (1, 2)))
    assert judge(Case(job=job(), workers=two, shards=shards(18, 17, 17, spares=1, waiting=(0,)))).is_stuck
    first = (worker(0, condition=Condition.SILENT, silence=42.3), worker(1), worker(2))
    found = judge(Case(job=job(), workers=first, shards=shards(17, 18, 17, spares=1, waiting=(1,))))
    assert (found.culprits, found.is_stuck) == ((0,), True), "it is always waited for"
    late = (worker(0, at_step=12.0), worker(1, at_step=12.0), worker(2))
    found = judge(Case(job=job(), workers=late, shards=shards(17, 17, 18, spares=1, waiting=(2,))))
    assert found.culprits == (0,), "nobody waits for worker 1"


def test_how_many_pushes_came_too_late() -> None:
    found = shard(A, 17, 17, 17, spares=1)
    late = tuple(replace(member, dropped=3 * member.worker) for member in found.members)
    told = judge(Case(job=job(shards=1), workers=ON_STEP, shards=(replace(found, members=late),)))
    assert told.text == (
        "is not stuck: workers 0, 1 and 2 are at step 17 of 100;"
        " so far pushes have come too late, and were dropped: 3 of worker 1 and 6 of worker 2"
    )


def test_a_job_in_the_hands_of_another_service() -> None:
    unknown = tuple(WorkerSight(rank=rank, step=5) for rank in range(3))
    found = judge(Case(job=job(shards=0), workers=unknown))
    assert found.text.startswith("is in the hands of another training service")
    found = judge(Case(job=job(), workers=unknown, shards=shards(17, 17, 17)))
    assert found.text.endswith(", which alone hears its workers; workers 0, 1 and 2 are at step 17")
    seen = tuple(
        replace(each, members=tuple(replace(member, seen=60.0) for member in each.members))
        for each in OF_ONE_WAITED_FOR
    )
    said = "worker 1, of which shards last heard 42 s ago, at step 17; workers 0 and 2 are at step 18"
    assert judge(Case(job=job(), workers=unknown, shards=seen, now=102.0)) == verdict(f"waits for {said}", 1)
    found = judge(Case(job=job(), workers=unknown, shards=OF_ONE_WAITED_FOR, now=102.0))
    assert found.text.startswith("waits for worker 1, of which no shard has heard yet, at step 17; ")
