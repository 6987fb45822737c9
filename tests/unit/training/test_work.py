"""Whole jobs with everything around the workers in memory: what comes out, and that faults do not change it."""

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from safetensors.numpy import load_file

from tests.support.datafiles import mnist_like, write_csv, write_idx, write_npz
from tests.support.memorygroup import MemoryGroup
from tests.support.workers import FolderArtifacts, MemoryJob, ThreadedNetwork, Worker, spec
from tidemill import errors
from tidemill.telemetry import attributes
from tidemill.training.epochs import Result
from tidemill.training.spec import Component, Dataset, EarlyStopping, JobSpec
from tidemill.training.words import padded
from tidemill.training.worker import work
from tidemill.training.worker.export import export
from tidemill.training.worker.export import run as run_onnx

Hook = Callable[[str, int], None]
DROPOUT = Component(name="mlp", parameters={"hidden": [16], "dropout": 0.3})


class Died(BaseException):
    """The end of a process."""


def dies_at(event: str, step: int) -> Hook:
    def hook(seen: str, at: int) -> None:
        if (seen, at) == (event, step):
            raise Died

    return hook


class Lab:
    """Runs jobs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.artifacts = FolderArtifacts(folder / "artifacts")
        (folder / "artifacts").mkdir()
        (folder / "work").mkdir()

    def start(self, job: MemoryJob, group: MemoryGroup, **given: Any) -> Worker:
        return Worker(job, group, self.artifacts, self.folder / "work", **given)

    def run(self, wanted: JobSpec, **given: Any) -> MemoryJob:
        """A job from start to end without faults."""
        job, group = MemoryJob(wanted), MemoryGroup(wanted.workers)
        workers = [self.start(job, group, rank=rank, **given) for rank in range(wanted.workers)]
        for worker in workers:
            worker.join()
            assert worker.died is None
        return job

    def weights(self, job: MemoryJob) -> dict[str, np.ndarray[Any, Any]]:
        return dict(load_file(self.artifacts.files(result(job).artifact) / "model.safetensors"))

    def dataset(self, files: dict[str, Path]) -> Dataset:
        return Dataset(artifact=self.artifacts.keep("dataset", files, {}, ""), label_column="label")


def result(job: MemoryJob) -> Result:
    assert job.failures == []
    assert job.result is not None
    return job.result


def same(one: dict[str, np.ndarray[Any, Any]], other: dict[str, np.ndarray[Any, Any]]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    torch.set_num_threads(1)
    monkeypatch.setattr(work, "Network", ThreadedNetwork)
    return Lab(tmp_path)


class TestResults:
    def test_a_job_ends_with_a_tested_model(self, lab: Lab) -> None:
        job = lab.run(spec(epochs=25, workers=2))
        found = result(job)
        assert found.test.accuracy >= 0.9
        assert found.test.samples == 15
        assert [epoch.epoch for epoch in job.epochs] == list(range(1, 26))
        assert {epoch.samples for epoch in job.epochs} == {120}
        assert job.epochs[found.best_epoch - 1].best
        assert job.epochs[0].train_loss > job.epochs[-1].train_loss > 0
        assert len(found.dataset_digest) == 64
        phases = [phase for rank, phase in job.phases if rank == 0]
        # Those that a heartbeat came upon: which of the short ones is a matter of the machine.
        assert phases[0] == "starting"
        assert {"starting", "training"} <= {*phases} <= {"starting", "training", "evaluating", "exporting"}

    def test_the_artifacts_hold_what_was_promised(self, lab: Lab) -> None:
        found = result(job := lab.run(spec(), export=export))
        files = lab.artifacts.files(found.artifact)
        assert sorted(path.name for path in files.iterdir()) == [
            "metrics.json",
            "model.onnx",
            "model.safetensors",
            "signature.json",
        ]
        facts = json.loads((files / "metrics.json").read_text())
        assert facts["test"]["accuracy"] == found.test.accuracy
        assert facts["parity"] == found.parity <= 1e-4
        assert facts["samples"] == {"train": 120, "validation": 15, "test": 15}
        assert json.loads((files / "signature.json").read_text()) == json.loads(found.signature)
        with np.load(lab.artifacts.files(found.test_samples) / "test.npz") as test:
            assert test["x"].dtype == np.float32
            y = run_onnx(files / "model.onnx", test["x"], 1)
            assert (y.argmax(1) == test["y"]).mean() == pytest.approx(found.test.accuracy)
        assert [kind for kind, _, _ in lab.artifacts.kept][-2:] == ["model", "dataset"]
        assert list((lab.folder / "work").iterdir()) == []
        assert job.epochs[found.best_epoch - 1].checkpoint in {digest for _, _, digest in lab.artifacts.kept}

    def test_the_best_epoch_is_exported_not_the_last(self, lab: Lab) -> None:
        wild = Component(name="adam", parameters={"learning_rate": 0.8})
        job = lab.run(spec(epochs=8, optimizer=wild))
        losses = [epoch.validation.loss for epoch in job.epochs]
        assert result(job).best_epoch == int(np.argmin(losses)) + 1 < 8
        best = job.epochs[result(job).best_epoch - 1]
        checkpoint = load_file(lab.artifacts.files(best.checkpoint) / "weights.safetensors")
        exported = lab.weights(job)
        assert all(np.array_equal(exported[f"network.{name}"], value) for name, value in checkpoint.items())
        assert {"mean", "std"} <= exported.keys()

    def test_checkpoints_are_kept_of_epochs_that_improve(self, lab: Lab) -> None:
        job = lab.run(spec(epochs=8, optimizer=Component(name="adam", parameters={"learning_rate": 0.8})))
        losses = [epoch.validation.loss for epoch in job.epochs]
        for index, epoch in enumerate(job.epochs):
            assert bool(epoch.checkpoint) == (losses[index] < min(losses[:index], default=float("inf")))

    def test_patience_ends_the_training_of_all_ranks(self, lab: Lab) -> None:
        wanted = spec(epochs=200, workers=3, early_stopping=EarlyStopping(patience=2, min_delta=0.3))
        job = lab.run(wanted)
        assert 2 < len(job.epochs) < 50
        assert result(job).best_epoch == len(job.epochs) - 2

    def test_more_workers_learn_the_same(self, lab: Lab) -> None:
        alone, together = (lab.weights(lab.run(spec(workers=workers))) for workers in (1, 3))
        for name, value in alone.items():
            assert np.allclose(value, together[name], atol=1e-5), name

    def test_more_workers_than_samples_in_a_step(self, lab: Lab) -> None:
        job = lab.run(spec(workers=4, batch_size=119, epochs=2))  # the last step of an epoch has one sample
        assert result(job).test.samples == 15


class TestDatasets:
    def test_images_from_idx_files_with_test_files(self, lab: Lab, tmp_path: Path) -> None:
        source = lab.dataset(write_idx(tmp_path, mnist_like(), packed=True))
        found = result(lab.run(spec(dataset=source, model=Component(name="cnn", parameters={}), batch_size=8)))
        assert found.test.samples == 20
        assert found.test.accuracy == 1.0

    def test_arrays(self, lab: Lab, tmp_path: Path) -> None:
        x = np.random.default_rng(0).normal(size=(200, 5)) * 1000
        source = lab.dataset(write_npz(tmp_path, x=x, y=np.where(x[:, 0] > 0, "up", "down")))
        assert result(lab.run(spec(dataset=source, epochs=20))).test.accuracy >= 0.9

    def test_texts(self, lab: Lab, tmp_path: Path) -> None:
        words = {"sea": ["tide", "wave", "salt"], "land": ["mill", "stone", "field"]}
        chance = np.random.default_rng(0)
        rows = [
            [label, " ".join(chance.choice(words[label], 5)) + f" and {i}"]
            for i, label in enumerate(["sea", "land"] * 100)
        ]
        source = lab.dataset(write_csv(tmp_path, [["label", "text"], *rows]))
        wanted = spec(
            dataset=replace(source, text_column="text"), model=Component(name="text", parameters={}), epochs=8
        )
        job = lab.run(wanted, export=export)
        found = result(job)
        assert found.test.accuracy >= 0.95
        labels = next(labels for kind, labels, digest in lab.artifacts.kept if digest == found.artifact)
        assert labels["tokenizer"] == "crc32-lower-words"
        tokens = padded("Salt, a WAVE & the tide!", int(labels["tokens"]))
        y = run_onnx(lab.artifacts.files(found.artifact) / "model.onnx", tokens[None], 1)
        assert y.argmax() == 1  # land, sea

    def test_texts_are_not_for_models_of_numbers(self, lab: Lab, tmp_path: Path) -> None:
        source = lab.dataset(write_csv(tmp_path, [["label", "text"], *[["a", "w"], ["b", "v"]] * 9]))
        job = lab.run(spec(dataset=replace(source, text_column="text")))
        assert [(error, final) for _, error, final, _ in job.failures] == [
            ("model mlp: takes numbers, not texts", True)
        ]

    @pytest.mark.parametrize("named", ["npz", "csv", "idx", ""])
    def test_files_that_are_something_else_fail_the_job_for_good(self, lab: Lab, tmp_path: Path, named: str) -> None:
        path = tmp_path / "picture.png"
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        source = lab.dataset({"picture.png": path})
        job = lab.run(spec(dataset=replace(source, format=named)))
        [(rank, error, final, step)] = job.failures
        assert (rank, final, step) == (0, True, 0)
        assert "data set:" in error or "no known format" in error
        assert job.tracebacks == [""], "the text says it all"

    def test_a_data_set_that_does_not_exist(self, lab: Lab) -> None:
        job = lab.run(spec(dataset=Dataset(artifact="0" * 64)))
        assert [final for _, _, final, _ in job.failures] == [True]


STEPS = 4  # of an epoch: 120 samples in batches of 32


class TestFaults:
    @pytest.mark.parametrize("rank", [0, 1])
    @pytest.mark.parametrize(
        ("event", "step"),
        [("push", 0), ("pushed", 0), ("pull", 3), ("push", STEPS), ("pushed", 2 * STEPS - 1), ("pull", 2 * STEPS)],
    )
    def test_a_worker_that_is_replaced_changes_nothing(self, lab: Lab, rank: int, event: str, step: int) -> None:
        wanted = spec(workers=2)
        want = lab.weights(lab.run(wanted))
        job, group = MemoryJob(wanted), MemoryGroup(2)
        hooks: dict[int, Hook] = {rank: dies_at(event, step)}
        workers = [self.started(lab, job, group, rank=r, hooks=hooks) for r in range(2)]
        workers[rank].join()
        assert isinstance(workers[rank].died, Died)
        workers[rank] = lab.start(job, group, rank=rank, attempt=1)
        for worker in workers:
            worker.join()
            assert worker.died is None
        assert same(lab.weights(job), want)
        assert [epoch.epoch for epoch in job.epochs] == [1, 2, 3]

    @staticmethod
    def started(lab: Lab, job: MemoryJob, group: MemoryGroup, rank: int, hooks: dict[int, Hook]) -> Worker:
        return lab.start(job, group, rank=rank, hook=hooks.get(rank, lambda event, step: None))

    @pytest.mark.parametrize(("event", "step"), [("create", 0), ("load", 0), ("pushed", 5), ("pull", 3 * STEPS)])
    def test_with_dropout_as_well(self, lab: Lab, event: str, step: int) -> None:
        wanted = spec(model=DROPOUT)
        want = lab.weights(lab.run(wanted))
        job, group = MemoryJob(wanted), MemoryGroup(1)
        first = lab.start(job, group, hook=dies_at(event, step))
        first.join()
        assert isinstance(first.died, Died)
        lab.start(job, group, attempt=1).join()
        assert same(lab.weights(job), want)

    def test_rank_0_may_die_after_the_training(self, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = spec(workers=2, epochs=50, early_stopping=EarlyStopping(patience=1, min_delta=0.2))
        want = lab.weights(lab.run(wanted))
        job, group = MemoryJob(wanted), MemoryGroup(2)
        other = lab.start(job, group, rank=1)
        lost = threading.Event()

        class Losing(FolderArtifacts):
            def keep(self, kind: str, *arguments: Any) -> str:
                if kind == "model" and not lost.is_set():
                    lost.set()
                    raise Died
                return super().keep(kind, *arguments)

        lab.artifacts = Losing(lab.folder / "artifacts")
        first = lab.start(job, group, rank=0)
        first.join()
        assert isinstance(first.died, Died)
        assert job.over
        lab.start(job, group, rank=0, attempt=1).join()
        other.join()
        assert same(lab.weights(job), want)
        assert job.epochs[-1].epoch == len(job.epochs)

    def test_a_loss_that_is_no_number_fails_the_job_for_good(self, lab: Lab) -> None:
        job = lab.run(spec(optimizer=Component(name="adam", parameters={"learning_rate": 1e30}), epochs=20))
        [(_, error, final, step)] = job.failures
        assert final
        assert error in (f"loss is nan at step {step}", f"loss is inf at step {step}")

    def test_an_unexpected_error_is_told_with_its_traceback_and_not_final(self, lab: Lab) -> None:
        def hook(event: str, step: int) -> None:
            if (event, step) == ("push", 6):
                raise ZeroDivisionError("x" * 10_000)

        job, group = MemoryJob(spec()), MemoryGroup(1)
        worker = lab.start(job, group, hook=hook)
        worker.join()
        assert worker.well is False
        [(_, error, final, step)] = job.failures
        assert (final, step) == (False, 6)
        assert error.startswith("ZeroDivisionError: xxx")
        assert len(error) <= 4096
        [where] = job.tracebacks
        assert where.startswith("Traceback (most recent call last)")
        assert "in exchange" in where
        assert "ZeroDivisionError: xxx" in where, "a long message does not cost the frames"
        assert len(where.encode()) <= 8192

    def test_a_stop_ends_a_step_that_is_never_finished(self, lab: Lab) -> None:
        job, group = MemoryJob(spec(workers=2)), MemoryGroup(2)
        waiting = threading.Event()
        worker = lab.start(job, group, hook=lambda event, step: waiting.set() if event == "pushed" else None)
        assert waiting.wait(30)
        job.stopped = True
        worker.join()
        assert worker.well is True
        assert job.failures == []

    def test_a_worker_whose_rank_another_process_has_ends_quietly(self, lab: Lab) -> None:
        def hook(event: str, step: int) -> None:
            if (event, step) == ("push", 2):
                job.stopped = True
                raise errors.Stale("a later attempt was here")

        job, group = MemoryJob(spec()), MemoryGroup(1)
        worker = lab.start(job, group, hook=hook)
        worker.join()
        assert worker.well is True
        assert job.failures == []


def test_the_trace_has_every_part_and_few_steps(lab: Lab) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    lab.run(spec(epochs=2), provider=provider)
    spans = exporter.get_finished_spans()
    [root] = [span for span in spans if span.name == attributes.SPAN_WORKER]
    assert {span.context.trace_id for span in spans if span.context} == {root.context.trace_id}
    names = [span.name for span in spans]
    assert names.count(attributes.SPAN_EPOCH) == names.count(attributes.SPAN_STEP) == 2
    assert {attributes.SPAN_DATASET, attributes.SPAN_EVALUATE, attributes.SPAN_EXPORT, attributes.SPAN_UPLOAD} <= {
        *names
    }
    assert all(span.status.is_unset for span in spans)
    steps = [span.attributes for span in spans if span.name == attributes.SPAN_STEP]
    assert [given[attributes.STEP] for given in steps if given] == [0, STEPS]
