"""Workers that train over real shards in every mode: what comes out, slow ranks, replaced ranks, samples that count."""

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.support.memorygroup import MemoryGroup
from tests.support.shards import Shards, shards
from tests.support.wait import until
from tests.support.workers import FolderArtifacts, MemoryJob, ThreadedNetwork, Worker, spec
from tidemill.clients import parameters
from tidemill.clients.parameters import ParametersClient
from tidemill.rpc.loop import LoopThread
from tidemill.training.spec import Component, Consistency, EarlyStopping, JobSpec
from tidemill.training.strategies.base import Flat
from tidemill.training.worker import work
from tidemill.training.worker.remote import RemoteGroup
from tidemill.training.worker.sharding import Schedule
from tidemill.training.worker.task import Task

T = TypeVar("T")
Hook = Callable[[str, int], None]
GROUP = "groups/test"
SAMPLES = 120
STEPS = 4  # of an epoch: 120 samples in batches of 32
SSP = Consistency(mode="ssp", staleness=2)
ASP = Consistency(mode="asp")


class Died(BaseException):
    """The end of a process."""


def nothing(event: str, step: int) -> None:
    """Let it go on."""


def shown(happened: bool) -> None:
    """It has happened in time."""
    assert happened


class HookedGroup(RemoteGroup):
    """One worker's end of a group; `hook(event, step)` may wait, or raise what a dying worker would."""

    hook: Hook = staticmethod(nothing)

    def push(self, gradient: Flat, *, step: int, samples: int) -> bool:
        self.hook("push", step)
        counts = super().push(gradient, step=step, samples=samples)
        self.hook("pushed", step)
        return counts


@dataclass
class Borrowed:
    """The test's own loop, for workers in threads."""

    loop: asyncio.AbstractEventLoop

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self.loop).result(30)


class Lab:
    """Runs jobs over shards."""

    def __init__(self, folder: Path, cluster: Shards) -> None:
        self.folder = folder
        self.cluster = cluster
        for name in ("artifacts", "work"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.artifacts = FolderArtifacts(folder / "artifacts")
        self.clients: list[ParametersClient] = []
        self.overlap = True
        self.keeps = True
        self._loop = cast(LoopThread, Borrowed(asyncio.get_running_loop()))

    def start(self, job: MemoryJob, rank: int, attempt: int = 0, hook: Hook = nothing) -> Worker:
        own: list[ParametersClient] = []

        class Closing(MemoryGroup):
            def end(self) -> None:
                for client in own:
                    client.close()

        def connect(task: Task) -> RemoteGroup:
            codec = task.spec.codec
            client = self.cluster.client(
                task.group,
                codec=codec.name or "fp32",
                codec_parameters=codec.parameters,
                overlap=self.overlap,
                residuals=self.folder / "work" / f"{job.spec.seed}-{rank}" if self.keeps else None,
            )
            own.append(client)
            self.clients.append(client)
            group = HookedGroup(task, self.cluster.admin, client, self._loop)
            group.hook = hook
            return group

        there = Closing(job.spec.workers)
        return Worker(
            job, there, self.artifacts, self.folder / "work", rank=rank, attempt=attempt, server=connect, hook=hook
        )

    async def run(self, wanted: JobSpec, hooks: dict[int, Hook] | None = None) -> MemoryJob:
        """A job from start to end."""
        job = MemoryJob(wanted)
        workers = [self.start(job, rank, hook=(hooks or {}).get(rank, nothing)) for rank in range(wanted.workers)]
        await self.join(*workers)
        return job

    async def join(self, *workers: Worker) -> None:
        for worker in workers:
            await asyncio.to_thread(worker.join)
            assert worker.died is None

    async def clocks(self) -> list[int]:
        """Of each worker, on the shard that has applied the fewest of its pushes."""
        groups = await self.cluster.admin.get_group(GROUP)
        return [min(group.members[rank].clock for group in groups) for rank in range(groups[0].workers)]

    def weights(self, job: MemoryJob) -> dict[str, Any]:
        assert job.failures == []
        assert job.result is not None
        found: dict[str, Any] = load_file(self.artifacts.files(job.result.artifact) / "model.safetensors")
        return found

    def close(self) -> None:
        for client in self.clients:
            client.close()


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(work, "Network", ThreadedNetwork)


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with shards(2) as cluster:
        made = Lab(tmp_path, cluster)
        yield made
        made.close()


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("way", [SSP, ASP], ids=["ssp", "asp"])
class TestOwnPace:
    async def test_a_job_ends_with_a_model_that_has_learned(self, lab: Lab, way: Consistency) -> None:
        job = await lab.run(spec(epochs=15, workers=3, consistency=way))
        assert lab.weights(job)
        assert job.result is not None
        assert job.result.test.accuracy >= 0.9
        assert [epoch.epoch for epoch in job.epochs] == list(range(1, 16))

    async def test_samples_are_those_that_were_used(self, lab: Lab, way: Consistency) -> None:
        job = await lab.run(spec(epochs=5, workers=3, consistency=way))
        used = sum(epoch.samples for epoch in job.epochs)
        own = Schedule(samples=SAMPLES, batch_size=32, workers=3, seed=7)
        clocks = await lab.clocks()
        assert clocks[0] == 5 * STEPS, "rank 0 has done all"
        assert own.used([5 * STEPS, 0, 0]) < used <= own.used(clocks) <= 5 * SAMPLES

    async def test_patience_ends_the_training_of_all_ranks(self, lab: Lab, way: Consistency) -> None:
        wanted = spec(epochs=500, workers=3, consistency=way, early_stopping=EarlyStopping(patience=2, min_delta=0.3))
        job = await lab.run(wanted)
        assert 2 < len(job.epochs) < 100
        assert job.result is not None

    async def test_ranks_that_are_done_wait_for_rank_0(self, lab: Lab, way: Consistency) -> None:
        done = threading.Event()

        def slow(event: str, step: int) -> None:
            if (event, step) == ("push", 3 * STEPS - 2):  # within the staleness: the other can finish meanwhile
                assert done.wait(30)

        job = MemoryJob(spec(workers=2, consistency=way))
        workers = [lab.start(job, 0, hook=slow), lab.start(job, 1)]

        await until(lambda: workers[1].progress.step == 3 * STEPS, what="rank 1 is done")
        done.set()
        await lab.join(*workers)
        assert job.result is not None
        assert sum(epoch.samples for epoch in job.epochs) == 3 * SAMPLES, "each was used once an epoch"
        assert await lab.clocks() == [3 * STEPS, 3 * STEPS]

    async def test_a_paused_job_goes_on_at_the_clocks_of_all(self, tmp_path: Path, way: Consistency) -> None:
        job = MemoryJob(spec(workers=3, epochs=400, consistency=way))
        async with shards(2) as cluster:
            lab = Lab(tmp_path, cluster)
            workers = [lab.start(job, rank) for rank in range(3)]
            await until(lambda: len(job.epochs) >= 2, what="two epochs are done")
            job.pausing = True
            await lab.join(*workers)
            lab.close()
        assert job.held
        [(step, _)] = job.checkpoints
        job.pausing = job.held = job.stopped = False
        job.spec = replace(job.spec, epochs=step // STEPS + 2)
        async with shards(1) as cluster:
            lab = Lab(tmp_path, cluster)
            workers = [lab.start(job, rank, attempt=1) for rank in range(3)]
            await until(lambda: bool(workers[0].progress.step), what="rank 0 has joined")
            assert workers[0].progress.step >= step
            await lab.join(*workers)
            assert (await lab.clocks())[0] == job.spec.epochs * STEPS
            lab.close()
        assert job.result is not None
        used = sum(epoch.samples for epoch in job.epochs)
        assert used <= job.spec.epochs * SAMPLES, "none was used twice in an epoch"

    async def test_a_replaced_worker_goes_on_at_its_own_clock(self, lab: Lab, way: Consistency) -> None:
        pushed: list[int] = []
        replaced = threading.Event()

        def dying(event: str, step: int) -> None:
            if (event, step) == ("push", 5):
                raise Died

        def seen(event: str, step: int) -> None:
            if event == "push":
                pushed.append(step)

        def patient(event: str, step: int) -> None:
            if (event, step) == ("push", 3 * STEPS - 1):
                assert replaced.wait(30)

        job = MemoryJob(spec(workers=2, consistency=way))
        first, other = lab.start(job, 1, hook=dying), lab.start(job, 0, hook=patient)
        await asyncio.to_thread(first.join)
        assert isinstance(first.died, Died)
        second = lab.start(job, 1, attempt=1, hook=seen)
        await until(lambda: second.progress.step == 3 * STEPS or other.stop.is_set, what="its steps are done")
        replaced.set()
        await lab.join(other, second)
        assert pushed == list(range(5, 3 * STEPS)), "each step once, from where its predecessor ended"
        assert sum(epoch.samples for epoch in job.epochs) == 3 * SAMPLES


class TestSlowRanks:
    async def test_a_slow_rank_does_not_hold_up_the_end_of_an_asynchronous_job(self, lab: Lab) -> None:
        job = MemoryJob(spec(workers=2, consistency=ASP))

        def slow(event: str, step: int) -> None:
            if (event, step) == ("push", 3):
                worker.stop.wait(30)

        ahead = threading.Event()
        worker = lab.start(job, 1, hook=slow)
        first = lab.start(job, 0, hook=lambda event, step: shown(ahead.wait(30)))
        await until(lambda: worker.progress.step == 3, what="three steps are done")
        ahead.set()
        await lab.join(first, worker)
        assert job.result is not None
        own = Schedule(samples=SAMPLES, batch_size=32, workers=2, seed=7)
        assert sum(epoch.samples for epoch in job.epochs) == own.used([3 * STEPS, 3]), "not those that were left"

    async def test_a_bound_holds_the_others(self, lab: Lab) -> None:
        job = MemoryJob(spec(workers=2, consistency=SSP))
        go = threading.Event()

        def slow(event: str, step: int) -> None:
            if (event, step) == ("push", 3):
                assert go.wait(30)

        workers = [lab.start(job, 1, hook=slow), lab.start(job, 0)]
        await until(lambda: workers[1].progress.step == 5, what="rank 0 is two steps ahead")

        async def held() -> bool:
            groups = await lab.cluster.admin.get_group(GROUP)
            return any("worker 1 (at 3)" in group.members[0].waits_for for group in groups)

        await until(held, what="rank 0 waits for rank 1")
        assert workers[1].progress.step == 5
        go.set()
        await lab.join(*workers)
        assert job.result is not None


class TestTogether:
    async def test_the_same_seed_gives_the_same_bits_on_any_number_of_shards(self, tmp_path: Path) -> None:
        wanted = spec(workers=3, model=Component(name="mlp", parameters={"hidden": [16], "dropout": 0.3}))
        found = []
        for run, count in enumerate((1, 2, 2)):
            async with shards(count) as cluster:
                folder = tmp_path / str(run)
                folder.mkdir()
                lab = Lab(folder, cluster)
                job = await lab.run(wanted)
                found.append((lab.weights(job), [replace(epoch, seconds=0) for epoch in job.epochs]))
                lab.close()
        for weights, epochs in found[1:]:
            assert same(weights, found[0][0])
            assert epochs == found[0][1]

    async def test_gradients_that_leave_during_backward_change_no_bit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(parameters, "EARLY", 0)
        wanted = spec(workers=2, model=Component(name="mlp", parameters={"hidden": [64, 64], "dropout": 0.3}))
        found = []
        for overlap in (False, True):
            async with shards(2) as cluster:
                folder = tmp_path / str(overlap)
                folder.mkdir()
                lab = Lab(folder, cluster)
                lab.overlap = overlap
                found.append(lab.weights(await lab.run(wanted)))
                lab.close()
        assert same(*found)

    async def test_a_gradient_without_a_finite_loss_counts_nowhere(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Diverging(ThreadedNetwork):
            """A network whose third loss is not finite."""

            steps = 0

            def gradient(self, *given: Any) -> tuple[Flat, float]:
                self.steps += 1
                found, loss = super().gradient(*given)
                return found, loss if self.steps < 3 else math.inf

        monkeypatch.setattr(parameters, "EARLY", 0)
        monkeypatch.setattr(work, "Network", Diverging)
        job = MemoryJob(spec())
        await lab.join(lab.start(job, 0))
        ((_, error, final, step),) = job.failures
        assert "loss is inf at step 2" in error
        assert final
        assert step == 2

        async def gone() -> bool:
            return not any(g.members[0].bytes_in_flight for g in await lab.cluster.admin.get_group(GROUP))

        await until(gone, what="what had left is gone")
        assert await lab.clocks() == [step]

    async def test_a_staleness_of_0_is_the_same_to_the_bit(self, tmp_path: Path) -> None:
        found = []
        for run, way in enumerate((Consistency(mode="bsp"), Consistency(mode="ssp"))):
            async with shards() as cluster:
                folder = tmp_path / str(run)
                folder.mkdir()
                lab = Lab(folder, cluster)
                found.append(lab.weights(await lab.run(spec(workers=2, consistency=way))))
                lab.close()
        assert same(*found)

    async def test_the_rule_of_the_job_is_that_of_the_group(self, lab: Lab) -> None:
        wanted = spec(
            l1=0.25,
            schedule=Component(name="cosine", parameters={"steps": 7}),
            consistency=Consistency(mode="bsp", arrival_order=True),
        )
        await lab.run(wanted)
        for group in await lab.cluster.admin.get_group(GROUP):
            assert (group.l1, group.schedule.name, group.schedule.parameters["steps"]) == (0.25, "cosine", 7)
            assert group.consistency.arrival_order

    @pytest.mark.parametrize("codec", ["bf16", "int8", "topk", "auto"])
    async def test_gradients_may_travel_encoded(self, lab: Lab, codec: str) -> None:
        given = {"fraction": 0.5} if codec == "topk" else {}
        wanted = spec(epochs=12, workers=2, codec=Component(name=codec, parameters=given))
        job = MemoryJob(wanted)
        second = lab.start(job, 1)
        await until(lambda: lab.clients, what="rank 1 looks for a group that is not there yet")
        await lab.join(lab.start(job, 0), second)
        assert job.result is not None
        assert job.result.test.accuracy >= 0.85

    @pytest.mark.parametrize("event", ["push", "pushed"])
    async def test_what_was_not_sent_is_kept_for_the_next_worker(
        self, lab: Lab, tmp_path: Path, event: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """So a killed worker changes nothing, to the bit."""

        def dying(happened: str, step: int) -> None:
            if (happened, step) == (event, 5):
                raise Died

        caplog.set_level("INFO", "tidemill.training.worker.remote")
        wanted = spec(codec=Component(name="topk", parameters={"fraction": 0.1}))
        straight = await lab.run(wanted)
        job = MemoryJob(wanted)
        async with shards(2) as cluster:
            other = Lab(tmp_path / "other", cluster)
            await asyncio.to_thread(other.start(job, 0, hook=dying).join)
            assert job.result is None
            await other.join(other.start(job, 0, attempt=1))
            assert same(other.weights(job), lab.weights(straight))
            other.close()
        assert "is dropped" not in caplog.text

    @pytest.mark.parametrize("way", [Consistency(), ASP], ids=["bsp", "asp"])
    async def test_what_was_not_sent_is_kept_while_a_job_is_paused(
        self, tmp_path: Path, way: Consistency, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "tidemill.training.worker.remote")
        wanted = spec(epochs=6, consistency=way, codec=Component(name="topk", parameters={"fraction": 0.1}))
        async with shards(2) as cluster:
            lab = Lab(tmp_path / "straight", cluster)
            straight = lab.weights(await lab.run(wanted))
            lab.close()
        job = MemoryJob(wanted)

        def pausing(event: str, step: int) -> None:
            if (event, step) == ("push", 9):
                job.pausing = True

        for hook in (pausing, nothing):
            job.pausing = job.held = job.stopped = False
            async with shards(2) as cluster:
                lab = Lab(tmp_path / "paused", cluster)
                await lab.join(lab.start(job, 0, hook=hook))
                lab.close()
        assert job.checkpoints
        assert same(lab.weights(job), straight)
        assert "is dropped" not in caplog.text

    async def test_what_was_not_sent_is_dropped_with_its_worker(
        self, lab: Lab, caplog: pytest.LogCaptureFixture
    ) -> None:
        def dying(event: str, step: int) -> None:
            if (event, step) == ("push", 5):
                raise Died

        caplog.set_level("INFO", "tidemill.training.worker.remote")
        lab.keeps = False
        job = MemoryJob(spec(codec=Component(name="topk", parameters={"fraction": 0.1})))
        first = lab.start(job, 0, hook=dying)
        await asyncio.to_thread(first.join)
        assert lab.clients[0].residuals.save().any()
        assert "is dropped" not in caplog.text
        await lab.join(lab.start(job, 0, attempt=1))
        assert "rank 0 joins at step 5: what was not sent before, by topk, is not here any more" in caplog.text
        assert job.result is not None
