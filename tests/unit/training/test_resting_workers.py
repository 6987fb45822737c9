"""Workers that pause, or whose parameters are lost, and those that go on in their place: nothing else is lost."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from tests.support.memorygroup import MemoryGroup
from tests.support.workers import FolderArtifacts, MemoryJob, ThreadedNetwork, Worker, spec
from tidemill.errors import DataLoss
from tidemill.training.spec import Component, Durability, EarlyStopping, JobSpec
from tidemill.training.worker import work

STEPS = 4  # of an epoch: 120 samples in batches of 32
DROPOUT = Component(name="mlp", parameters={"hidden": [16], "dropout": 0.3})
Hook = Callable[[str, int], None]


class Died(BaseException):
    """The end of a process."""


def nothing(event: str, step: int) -> None:
    """Let it go on."""


class Lab:
    """Runs jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "artifacts").mkdir()
        (folder / "work").mkdir()
        self.artifacts = FolderArtifacts(folder / "artifacts")
        self.attempt = -1
        self.group = MemoryGroup(1)
        self.workers: list[Worker] = []

    def run(self, job: MemoryJob, hook: Hook = nothing) -> None:
        """Workers, from their start to their end, with a group of their own."""
        self.attempt += 1
        self.group = MemoryGroup(job.spec.workers)
        self.workers = []
        for rank in range(job.spec.workers):
            self.workers.append(
                Worker(
                    job,
                    self.group,
                    self.artifacts,
                    self.folder / "work",
                    rank=rank,
                    attempt=self.attempt,
                    hook=nothing if rank else hook,
                )
            )
        for worker in self.workers:
            worker.join()
            assert worker.died is None

    def straight(self, wanted: JobSpec) -> MemoryJob:
        """The job without any fault."""
        job = MemoryJob(wanted)
        self.run(job)
        return job

    def pausing(self, job: MemoryJob, at: int, event: str = "push") -> Hook:
        """Rank 0 hears in the middle of a step that it is to pause."""

        def hook(happens: str, step: int) -> None:
            if (happens, step) == (event, at) and not job.held:
                job.pausing = True
                while not self.workers[0].progress.pausing:
                    assert not self.workers[0].stop.wait(0.005)

        return hook

    def again(self, job: MemoryJob) -> None:
        """New workers for a job whose workers have ended."""
        job.pausing = job.held = job.stopped = False
        self.run(job)

    def results(self, job: MemoryJob) -> tuple[dict[str, Any], Any]:
        assert job.failures == []
        assert job.result is not None
        found: dict[str, Any] = load_file(self.artifacts.files(job.result.artifact) / "model.safetensors")
        epochs = [replace(epoch, seconds=0.0) for epoch in job.epochs]
        return {name: array.tobytes() for name, array in found.items()}, (epochs, job.result.test)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    torch.set_num_threads(1)
    monkeypatch.setattr(work, "Network", ThreadedNetwork)
    monkeypatch.setenv("LOCAL_RANK", "0")
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    return Lab(tmp_path)


class TestPause:
    @pytest.mark.parametrize("at", [0, 2, STEPS - 1, STEPS, 2 * STEPS + 1, 3 * STEPS - 1])
    def test_paused_and_resumed_is_as_good_as_never_paused(self, lab: Lab, at: int) -> None:
        wanted = spec(workers=2, model=DROPOUT)
        expected = lab.results(lab.straight(wanted))
        job = MemoryJob(wanted)
        lab.run(job, lab.pausing(job, at))
        assert job.held
        assert job.result is None
        assert [step for step, _ in job.checkpoints] == [at + 1], "after the step in which it has heard of it"
        lab.again(job)
        assert lab.results(job) == expected

    def test_paused_again_and_again(self, lab: Lab) -> None:
        wanted = spec(workers=2, early_stopping=EarlyStopping(patience=2), epochs=6)
        expected = lab.results(lab.straight(wanted))
        job = MemoryJob(wanted)
        for at in (1, 5, 6):
            job.pausing = job.held = job.stopped = False
            lab.run(job, lab.pausing(job, at))
        lab.again(job)
        assert lab.results(job) == expected
        assert [step for step, _ in job.checkpoints] == [2, 6, 7]

    def test_a_pause_before_the_first_step_keeps_nothing(self, lab: Lab) -> None:
        job = MemoryJob(spec())
        lab.run(job, lab.pausing(job, 0, "pull"))
        assert job.checkpoints == [(0, "")]
        assert not lab.artifacts.kept
        lab.again(job)
        assert lab.results(job)

    def test_a_pause_that_comes_when_nothing_was_done_since_the_last_one(self, lab: Lab) -> None:
        job = MemoryJob(spec())
        lab.run(job, lab.pausing(job, 4))
        job.pausing = job.held = job.stopped = False
        lab.run(job, lab.pausing(job, 5, "pull"))
        assert [step for step, _ in job.checkpoints] == [5, 5]
        assert len({digest for _, digest in job.checkpoints}) == 1, "what is kept is not kept twice"

    def test_workers_that_hold_the_state_themselves(self, lab: Lab) -> None:
        wanted = spec(workers=2, strategy="all_reduce", shards=0, epochs=4, model=DROPOUT)
        expected = lab.results(lab.straight(wanted))
        job = MemoryJob(wanted)
        job.pausing = True
        lab.run(job)
        assert job.held
        step, digest = job.checkpoints[-1]
        assert bool(digest) == bool(step)
        lab.again(job)
        assert lab.results(job) == expected

    def test_a_damaged_snapshot_is_refused(self, lab: Lab) -> None:
        job = MemoryJob(spec())
        lab.run(job, lab.pausing(job, 4))
        path = lab.artifacts.files(job.checkpoints[-1][1]) / "weights.safetensors"
        whole = bytearray(path.read_bytes())
        whole[-1] ^= 1
        path.write_bytes(whole)
        lab.again(job)
        ((_, error, final, _),) = job.failures
        assert final
        assert "the snapshot cannot be used" in error
        assert job.result is None
        assert DataLoss.__name__ not in error


class TestLostParameters:
    def losing(self, lab: Lab, at: int) -> Hook:
        def hook(event: str, step: int) -> None:
            if (event, step) == ("push", at):
                lab.group.end()

        return hook

    @pytest.mark.parametrize("at", [2, 3, 7])
    def test_the_job_goes_on_from_its_last_checkpoint(self, lab: Lab, at: int) -> None:
        wanted = spec(workers=2, model=DROPOUT)
        expected = lab.results(lab.straight(wanted))
        job = MemoryJob(replace(wanted, durability=Durability(mode="checkpoint", interval_steps=3)))
        lab.run(job, self.losing(lab, at))
        assert job.group_lost
        assert "the parameters are lost" in job.failures[0][1]
        assert [step for step, _ in job.checkpoints] == list(range(3, at + 1, 3)), "at most so many steps are lost"
        job.failures.clear()
        lab.again(job)
        assert lab.results(job) == expected
        assert [step for step, _ in job.checkpoints] == [3, 6, 9], "not at the end"

    def test_a_worker_that_dies_while_it_keeps_a_checkpoint_leaves_the_one_before(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = spec(model=DROPOUT)
        expected = lab.results(lab.straight(wanted))
        job = MemoryJob(replace(wanted, durability=Durability(mode="checkpoint", interval_steps=3)))
        keep = FolderArtifacts.keep

        def dying(self: FolderArtifacts, kind: str, *arguments: Any) -> str:
            digest = keep(self, kind, *arguments)
            if arguments[1].get("step") == "6":
                raise Died
            return digest

        with monkeypatch.context() as patch:
            patch.setattr(FolderArtifacts, "keep", dying)
            with pytest.raises(AssertionError):
                lab.run(job)
        assert isinstance(lab.workers[0].died, Died)
        assert [step for step, _ in job.checkpoints] == [3]
        lab.again(job)
        assert lab.results(job) == expected

    def test_without_checkpoints_nobody_hopes_for_one(self, lab: Lab) -> None:
        job = MemoryJob(spec())
        lab.run(job, self.losing(lab, 5))
        assert not job.group_lost
        assert not job.checkpoints
