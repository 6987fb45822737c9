"""Jobs with late workers over real shards: what is trained, which samples count, and what a job says that fails."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import torch

from tests.integration.test_strategy_modes import GROUP, SAMPLES, STEPS, Died, Hook, Lab
from tests.support.shards import shards
from tests.support.wait import until
from tests.support.workers import MemoryJob, ThreadedNetwork, Worker, spec
from tidemill.training.spec import Durability, Stragglers
from tidemill.training.worker import work
from tidemill.training.worker.sharding import Schedule

DROP = Stragglers(policy="drop", most=1)
EPOCHS = 6
ALL = EPOCHS * STEPS
USED = Schedule(samples=SAMPLES, batch_size=32, workers=3, seed=7)


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(work, "Network", ThreadedNetwork)


@pytest.fixture(params=[1, 2])
async def lab(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lab]:
    async with shards(request.param) as cluster:
        made = Lab(tmp_path, cluster)
        yield made
        made.close()


class Behind:
    """Lets a worker hand in its gradients when the first one has done with the step."""

    def __init__(self, late: Callable[[int], bool]) -> None:
        self._late = late
        self._done = threading.Condition()
        self._step = -1
        self.pushed: list[int] = []

    def first(self, event: str, step: int) -> None:
        """Of rank 0."""
        if event == "push":
            with self._done:
                self._step = step  # it has pulled this: the round before has closed
                self._done.notify_all()

    def slow(self, event: str, step: int) -> None:
        """Of the slow one."""
        if event == "push":
            self.pushed.append(step)
            if self._late(step):
                with self._done:
                    self._done.wait_for(lambda: self._step > step or step == ALL - 1, 30)


async def trained(lab: Lab, behind: Behind) -> MemoryJob:
    hooks: dict[int, Hook] = {0: behind.first, 2: behind.slow}
    return await lab.run(spec(workers=3, epochs=EPOCHS, stragglers=DROP), hooks)


async def test_a_job_goes_on_without_a_worker_that_is_always_late(lab: Lab) -> None:
    behind = Behind(lambda step: True)
    job = await trained(lab, behind)
    assert lab.weights(job)
    assert [epoch.epoch for epoch in job.epochs] == list(range(1, EPOCHS + 1))
    for group in await lab.cluster.admin.get_group(GROUP):
        assert group.version == ALL
        assert sum(epoch.samples for epoch in job.epochs) == group.samples
        assert group.members[2].dropped >= 1
    others = USED.used([ALL, ALL, 0])
    last = USED.counts(ALL - 1)[2]
    assert group.samples in (others, others + last), "in the last step it is not held"
    assert behind.pushed == sorted(set(behind.pushed)), "it never goes back"


async def test_samples_count_when_they_were_used(lab: Lab) -> None:
    behind = Behind(lambda step: step % 2 == 0)
    job = await trained(lab, behind)
    groups = await lab.cluster.admin.get_group(GROUP)
    assert {sum(epoch.samples for epoch in job.epochs)} == {group.samples for group in groups}
    assert all(USED.used([STEPS, STEPS, 0]) - 16 <= epoch.samples <= SAMPLES for epoch in job.epochs)
    assert sum(epoch.samples for epoch in job.epochs) < EPOCHS * SAMPLES


async def test_a_dead_worker_stops_nobody_and_its_replacement_takes_part(lab: Lab) -> None:
    dead, joined = threading.Event(), threading.Event()
    later: list[int] = []

    def dying(event: str, step: int) -> None:
        if (event, step) == ("push", 3):
            raise Died

    def replaced(event: str, step: int) -> None:
        if event == "pushed":
            later.append(step)
            joined.set()

    def patient(event: str, step: int) -> None:
        if (event, step) == ("push", 3):
            assert dead.wait(30)
        if (event, step) == ("push", 3 * STEPS):
            assert joined.wait(30)

    job = MemoryJob(spec(workers=3, epochs=EPOCHS, stragglers=DROP))
    first, others = lab.start(job, 2, hook=dying), [lab.start(job, 0, hook=patient), lab.start(job, 1)]
    await asyncio.to_thread(first.join)
    assert isinstance(first.died, Died)
    dead.set()
    await until(lambda: others[0].progress.step == 3 * STEPS, what="the others have gone on")
    second = lab.start(job, 2, attempt=1, hook=replaced)
    await lab.join(*others, second)
    assert job.result is not None
    assert later[0] >= 3 * STEPS, "it joins where the others are"
    groups = await lab.cluster.admin.get_group(GROUP)
    assert {sum(epoch.samples for epoch in job.epochs)} == {group.samples for group in groups}


async def test_rank_0_is_waited_for(lab: Lab) -> None:
    go = threading.Event()

    def slow(event: str, step: int) -> None:
        if (event, step) == ("push", 5):
            assert go.wait(30)

    job = MemoryJob(spec(workers=3, epochs=EPOCHS, stragglers=DROP))
    workers = [lab.start(job, 0, hook=slow), lab.start(job, 1), lab.start(job, 2)]

    async def held() -> bool:
        groups = await lab.cluster.admin.get_group(GROUP)
        return "worker 0 must push" in groups[0].members[1].waits_for

    await until(lambda: workers[0].progress.step == 5, what="rank 0 is held")
    await until(held, what="the others wait for it")
    go.set()
    await lab.join(*workers)
    assert job.result is not None
    assert len(job.epochs) == EPOCHS


def late(worker: list[Worker]) -> Callable[[str, int], None]:
    """Stops a worker in the middle of its training."""

    def hook(event: str, step: int) -> None:
        if (event, step) == ("push", 5):
            worker[0].stop.wait(30)

    return hook


async def test_a_job_fails_for_good_and_says_who_was_late(lab: Lab) -> None:
    job = MemoryJob(spec(workers=3, stragglers=Stragglers(policy="fail", after_seconds=0.3)))
    slow: list[Worker] = []
    slow.append(lab.start(job, 1, hook=late(slow)))
    others = [lab.start(job, rank) for rank in (0, 2)]
    for worker in others:
        await asyncio.to_thread(worker.join)
        assert worker.well is False
    slow[0].stop.set("the job has failed")
    await asyncio.to_thread(slow[0].join)
    assert {rank for rank, *_ in job.failures} == {0, 2}
    for _, error, final, step in job.failures:
        assert "worker 1 did not push for step 5 within 0.3 s" in error
        assert (final, step) == (True, 5)
    assert job.result is None


async def test_checkpoints_and_dropping_go_together(tmp_path: Path) -> None:
    async with shards(2) as cluster:
        lab = Lab(tmp_path, cluster)
        behind = Behind(lambda step: True)
        kept = Durability(mode="checkpoint", interval_steps=3)
        wanted = spec(workers=3, epochs=EPOCHS, stragglers=DROP, durability=kept)
        job = await lab.run(wanted, {0: behind.first, 2: behind.slow})
        lab.close()
    assert job.result is not None
    assert [step for step, _ in job.checkpoints] == list(range(3, ALL, 3))
