"""Worker processes on real parameter shards and a real artifact store."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

from tests.support.wait import until
from tests.support.workerprocess import Office, WorkerProcess, office
from tests.support.workers import spec
from tidemill.api.registry.v1.registry_pb2 import Signature
from tidemill.api.tensors.v1.tensors_pb2 import DATA_TYPE_FP32
from tidemill.telemetry import attributes
from tidemill.training.spec import Component, Dataset, JobSpec
from tidemill.training.worker.export import run

pytestmark = pytest.mark.timeout(240)


@contextmanager
def workers(at: Office, ranks: int, **environment: str) -> Iterator[list[WorkerProcess]]:
    """A process for each rank; ended at the end, and so are those that a test puts in their place."""
    processes: list[WorkerProcess] = []
    try:
        for rank in range(ranks):
            processes.append(at.start(rank, **environment))
        yield processes
    finally:
        for process in processes:
            process.clean()


async def files(at: Office, digest: str) -> dict[str, Path]:
    return await at.artifacts.download_artifact(digest, at.folder / digest)


async def test_two_workers_and_two_shards_learn_to_read_digits(tmp_path: Path) -> None:
    wanted = spec(
        model=Component(name="cnn", parameters={}),
        dataset=Dataset(builtin="digits"),
        optimizer=Component(name="adam", parameters={}),
        workers=2,
        shards=2,
        epochs=15,
        batch_size=64,
        seed=1,
    )
    async with office(tmp_path, wanted) as at:
        at.traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
        with workers(at, 2, TIDEMILL_TRACES=f"file:{tmp_path / 'traces'}") as processes:
            assert [await process.ended(180) for process in processes] == [0, 0]
            log = processes[0].log
        result = at.job.result
        assert at.job.failures == []
        assert result is not None
        assert result.test.accuracy >= 0.97
        assert result.parity <= 1e-4
        assert [epoch.epoch for epoch in at.job.epochs] == list(range(1, 16))

        assert "epoch 15/15: loss" in log
        assert "torchvision" not in log
        assert len(log.splitlines()) < 30
        signature = json_format.Parse(result.signature, Signature())
        assert [(t.name, t.dtype, list(t.shape)) for t in signature.inputs] == [("x", DATA_TYPE_FP32, [-1, 8, 8])]
        assert [(t.name, t.dtype, list(t.shape)) for t in signature.outputs] == [("y", DATA_TYPE_FP32, [-1, 10])]
        assert list(signature.labels) == [str(digit) for digit in range(10)]

        model = await files(at, result.artifact)
        assert sorted(model) == ["metrics.json", "model.onnx", "model.safetensors", "signature.json"]
        with np.load((await files(at, result.test_samples))["test.npz"]) as test:
            y = run(model["model.onnx"], test["x"], 1)
            assert (y.argmax(1) == test["y"]).mean() == pytest.approx(result.test.accuracy)
        artifact = await at.artifacts.get_artifact(result.artifact)
        assert (artifact.kind, list(artifact.references)) == ("model", ["jobs/test"])
        check_spans(tmp_path / "traces")


def check_spans(folder: Path) -> None:
    lines = [line for path in folder.glob("worker.*.jsonl") for line in path.read_text().splitlines()]
    spans: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert {span["trace_id"] for span in spans} == {"a" * 32}
    names = [span["name"] for span in spans]
    assert names.count(attributes.SPAN_WORKER) == 2
    assert names.count(attributes.SPAN_EPOCH) == names.count(attributes.SPAN_STEP) == 2 * 15
    pushes = [name for name in names if name.endswith("ParameterService/Push")]
    assert len(pushes) == 2 * 15 * 2  # two shards, in the steps that are traced
    wanted = {attributes.SPAN_DATASET, attributes.SPAN_EVALUATE, attributes.SPAN_EXPORT, attributes.SPAN_UPLOAD}
    assert wanted <= set(names)


SMALL = spec(
    model=Component(name="mlp", parameters={"hidden": [32], "dropout": 0.3}),
    dataset=Dataset(builtin="digits"),
    workers=2,
    shards=2,
    epochs=3,
    batch_size=24,
)
STEPS = 60  # of an epoch: 1437 samples in batches of 24


async def trained(folder: Path, wanted: JobSpec, kills: list[tuple[int, int]]) -> bytes:
    """The weights of a job whose ranks are killed at the steps given, in order."""
    async with office(folder, wanted) as at:
        with workers(at, wanted.workers) as processes:
            present = list(processes)
            for rank, step in kills:
                await at.reaches(rank, step)
                present[rank].kill()
                assert await present[rank].ended() == -9
                present[rank] = at.start(rank)
                processes.append(present[rank])
            assert [await process.ended() for process in present] == [0] * wanted.workers
        assert at.job.failures == []
        assert at.job.result is not None
        return (await files(at, at.job.result.artifact))["model.safetensors"].read_bytes()


async def test_killed_workers_change_nothing(tmp_path: Path) -> None:
    folders = tmp_path / "undisturbed", tmp_path / "killed"
    for folder in folders:
        os.mkdir(folder)
    undisturbed = await trained(folders[0], SMALL, [])
    assert await trained(folders[1], SMALL, [(1, STEPS // 2), (0, 3 * STEPS // 2)]) == undisturbed


async def test_every_way_in_which_a_worker_is_told_to_end(tmp_path: Path) -> None:
    """Three of four ranks wait in a step that the fourth, which does not exist, would have to finish."""
    async with office(tmp_path, spec(workers=4)) as at:
        with workers(at, 3) as processes:
            terminated, released, replaced = processes
            await until_waiting(at, 3)
            terminated.terminate()
            released.release()
            processes.append(at.start(2))
            assert await terminated.ended() == 128 + 15
            assert await released.ended() == 1
            assert await replaced.ended() == 0
            await until_waiting(at, 3)
            at.job.stopped = True
            assert await processes[3].ended() == 0
            assert "ends: SIGTERM" in terminated.log
            assert "ends: the launcher is gone" in released.log
            assert "ends: another process has this rank now" in replaced.log
            assert "ends: the training service asks to stop" in processes[3].log
        assert at.job.failures == []
        assert not [name for name in os.listdir(tmp_path) if name.startswith("rank") and not name.endswith(".log")]


async def until_waiting(at: Office, ranks: int) -> None:
    async def waiting() -> bool:
        return all(rank in at.beats and at.beats[rank].phase == "training" for rank in range(ranks))

    await until(waiting, 60.0, "all ranks are in the first step")


async def test_a_worker_with_bad_samples_says_so_for_good(tmp_path: Path) -> None:
    async with office(tmp_path, spec()) as at:
        made = await at.artifacts.create_artifact("dataset", {"table.csv": b"a,label\n1,x\n,y\n"})
        at.job.spec = spec(dataset=Dataset(artifact=made.digest, label_column="label"))
        with workers(at, 1) as (process,):
            assert await process.ended() == 1
        [(rank, error, final, step)] = at.job.failures
        assert (rank, final, step) == (0, True, 0)
        assert error == "data set: line 3, column 'a': the value is missing"
