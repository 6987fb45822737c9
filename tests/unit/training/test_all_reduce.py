"""All-reduce among workers in threads, with what surrounds them in memory: results, deaths, and what is kept."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.support.memorygroup import MemoryGroup
from tests.support.workers import FolderArtifacts, MemoryJob, ThreadedNetwork, Worker, spec
from tidemill.training.spec import Component, EarlyStopping, JobSpec
from tidemill.training.strategies import all_reduce
from tidemill.training.strategies.all_reduce import BUCKET, FIRST_BUCKET, Bucket, Round, buckets
from tidemill.training.strategies.base import Flat
from tidemill.training.worker import work
from tidemill.training.worker.peers import TorchPeers

STEPS = 4  # of an epoch: 120 samples in batches of 32


class Died(BaseException):
    """The end of a process."""


def reduced(**changes: Any) -> JobSpec:
    return spec(strategy="all_reduce", shards=0, **changes)


class Lab:
    """Runs jobs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "artifacts").mkdir()
        (folder / "work").mkdir()
        self.artifacts = FolderArtifacts(folder / "artifacts")

    def start(self, job: MemoryJob, rank: int, attempt: int = 0, group: MemoryGroup | None = None) -> Worker:
        there = group or MemoryGroup(job.spec.workers)
        return Worker(job, there, self.artifacts, self.folder / "work", rank=rank, attempt=attempt)

    def run(self, wanted: JobSpec) -> MemoryJob:
        job, group = MemoryJob(wanted), MemoryGroup(wanted.workers)
        workers = [self.start(job, rank, group=group) for rank in range(wanted.workers)]
        for worker in workers:
            worker.join()
            assert worker.died is None
        return job

    def weights(self, job: MemoryJob) -> dict[str, Any]:
        assert job.result is not None, job.failures
        found: dict[str, Any] = load_file(self.artifacts.files(job.result.artifact) / "model.safetensors")
        return found


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    torch.set_num_threads(1)
    monkeypatch.setattr(work, "Network", ThreadedNetwork)
    monkeypatch.setenv("LOCAL_RANK", "0")
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    return Lab(tmp_path)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


class TestBuckets:
    def test_the_last_tensors_leave_first_and_the_first_bucket_is_small(self) -> None:
        sizes = [BUCKET, BUCKET // 2, BUCKET // 2, FIRST_BUCKET - 1, 1, 7]
        total = sum(sizes)
        found = buckets(sizes)
        assert found[0] == Bucket(total - FIRST_BUCKET - 7, total)
        assert [run.stop - run.start for run in found[1:]] == [BUCKET, BUCKET]
        assert [run.start for run in found[:-1]] == [run.stop for run in found[1:]]
        assert found[-1].start == 0

    @pytest.mark.parametrize("sizes", [[3], [3, 4], [10 * BUCKET], [0, 5], []])
    def test_every_element_is_in_one(self, sizes: list[int]) -> None:
        covered = [position for run in buckets(sizes) for position in range(run.start, run.stop, 1 << 20)]
        assert sorted(covered) == sorted({*covered})
        assert sum(run.stop - run.start for run in buckets(sizes)) == sum(sizes)

    def test_they_leave_in_order_however_they_become_ready(self) -> None:
        left: list[int] = []

        class Done:
            def wait(self) -> None:
                """Nothing to wait for."""

        def add(values: Flat) -> Done:
            left.append(len(values))
            return Done()

        gradient, mean = np.arange(10, dtype=np.float32), np.zeros(10, np.float32)
        runs = [Bucket(7, 10), Bucket(3, 7), Bucket(0, 3)]
        made = Round(runs, gradient, np.float32(0.5), mean, add)
        made.ready(0, 3)
        made.ready(4, 7)
        assert left == []
        made.ready(7, 10)
        assert left == [3]
        made.ready(3, 4)
        assert left == [3, 4, 3]
        made.finish()
        assert np.array_equal(mean, gradient / 2)


class TestResults:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_they_equal_those_of_a_parameter_server(self, lab: Lab, workers: int) -> None:
        one, other = lab.run(reduced(workers=workers)), lab.run(spec(workers=workers))
        assert same(lab.weights(one), lab.weights(other)), "two addends have no order"
        assert [replace(epoch, seconds=0) for epoch in one.epochs] == [
            replace(epoch, seconds=0) for epoch in other.epochs
        ]

    def test_three_workers_agree_and_repeat_themselves(self, lab: Lab) -> None:
        first, again, server = lab.run(reduced(workers=3)), lab.run(reduced(workers=3)), lab.run(spec(workers=3))
        assert same(lab.weights(first), lab.weights(again))
        for name, value in lab.weights(server).items():
            assert np.allclose(lab.weights(first)[name], value, rtol=1e-4, atol=1e-5), name

    def test_several_buckets_change_nothing(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        want = lab.weights(lab.run(reduced(workers=2)))
        monkeypatch.setattr(all_reduce, "BUCKET", 40)
        monkeypatch.setattr(all_reduce, "FIRST_BUCKET", 2)
        assert same(lab.weights(lab.run(reduced(workers=2))), want)

    def test_a_worker_without_samples_takes_part(self, lab: Lab) -> None:
        job = lab.run(reduced(workers=3, batch_size=119, epochs=2))  # the last step of an epoch has one sample
        assert len(job.epochs) == 2

    def test_patience_ends_the_training_of_all_ranks(self, lab: Lab) -> None:
        job = lab.run(reduced(epochs=200, workers=2, early_stopping=EarlyStopping(patience=2, min_delta=0.3)))
        assert 2 < len(job.epochs) < 50
        assert job.failures == []

    def test_checkpoints_are_kept_at_the_ends_of_epochs_and_every_so_many_steps(self, lab: Lab) -> None:
        assert [step for step, _ in lab.run(reduced(epochs=3)).checkpoints] == [4, 8]
        job = lab.run(reduced(epochs=3, checkpoint_steps=3))
        assert [step for step, _ in job.checkpoints] == [3, 4, 6, 8, 9]


def dying(monkeypatch: pytest.MonkeyPatch, rank: int, call: int) -> None:
    """Let the worker of a rank die instead of its sum number `call`, once."""
    lock, calls = threading.Lock(), [0]
    plain: Callable[[TorchPeers, Flat], Any] = TorchPeers.add

    def add(self: TorchPeers, values: Flat) -> Any:
        if self._seat.rank == rank:
            with lock:
                calls[0] += 1
                number = calls[0]
            if number == call:
                self._leave()  # as the end of a process would
                raise Died
        return plain(self, values)

    monkeypatch.setattr(TorchPeers, "add", add)


class TestFaults:
    @pytest.mark.parametrize("rank", [0, 1])
    @pytest.mark.parametrize(("every", "call"), [(0, 1), (0, STEPS), (0, STEPS + 1), (3, STEPS + 3), (2, 3 * STEPS)])
    def test_a_worker_that_is_replaced_changes_nothing(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch, rank: int, every: int, call: int
    ) -> None:
        dropout = Component(name="mlp", parameters={"hidden": [16], "dropout": 0.3})
        wanted = reduced(workers=2, model=dropout, checkpoint_steps=every)
        fault_free = lab.run(wanted)
        dying(monkeypatch, rank, call)
        job = MemoryJob(wanted)
        workers = [lab.start(job, each) for each in range(2)]
        workers[rank].join()
        assert isinstance(workers[rank].died, Died)
        workers[rank] = lab.start(job, rank, attempt=1)
        for worker in workers:
            worker.join()
            assert worker.died is None
        assert same(lab.weights(job), lab.weights(fault_free))
        assert [replace(epoch, seconds=0) for epoch in job.epochs] == [
            replace(epoch, seconds=0) for epoch in fault_free.epochs
        ]
        assert job.failures == []

    def test_rank_0_may_die_after_the_training_when_the_others_are_gone(
        self, lab: Lab, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wanted = reduced(workers=2)
        want = lab.weights(lab.run(wanted))
        plain = FolderArtifacts.keep
        lost = threading.Event()

        def keep(self: FolderArtifacts, kind: str, *arguments: Any) -> str:
            if kind == "model" and not lost.is_set():
                lost.set()
                raise Died
            return plain(self, kind, *arguments)

        monkeypatch.setattr(FolderArtifacts, "keep", keep)
        job = MemoryJob(wanted)
        workers = [lab.start(job, rank) for rank in range(2)]
        for worker in workers:
            worker.join()
        lab.start(job, 0, attempt=1).join()
        assert same(lab.weights(job), want)

    def test_a_stop_ends_the_wait_for_others(self, lab: Lab) -> None:
        job = MemoryJob(reduced(workers=2))
        worker = lab.start(job, 0)  # nobody else comes
        job.stopped = True
        worker.join()
        assert worker.well is True
        assert job.failures == []
