"""A job whose workers go apart, asked for over REST, and what is refused there."""

import contextlib
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.up import Up
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.cli.stack import MANAGEMENT
from tidemill.clients.training import TrainingClient

pytestmark = [pytest.mark.xdist_group("platform"), pytest.mark.timeout(120)]

SPEC = {
    "model": {"name": "mlp", "parameters": {"hidden": [16]}},
    "dataset": {"builtin": "iris"},
    "optimizer": {"name": "adam", "parameters": {"learning_rate": 0.01}},
    "epochs": 12,
    "batch_size": 32,
    "workers": 2,
    "shards": 2,
}


def create(up: Up, **fields: Any) -> Any:
    url = f"http://{up.stack.address(MANAGEMENT)}/api/v1/jobs"
    data = json.dumps({**SPEC, **fields}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as response:
        return json.load(response)


def test_workers_may_go_apart(up: Up) -> None:
    way = {"mode": "ssp", "staleness": 2}
    schedule = {"name": "cosine", "parameters": {"steps": 100}}
    created = create(up, consistency=way, schedule=schedule, l1=1e-5, codec={"name": "auto"})
    assert created["spec"]["consistency"]["staleness"] == 2
    lines = up.cli("logs", created["name"], "--follow").stdout
    job = up.json("jobs", "show", created["name"])
    assert job["state"] == "STATE_SUCCEEDED", job.get("error")
    assert job["result"]["test"]["accuracy"] >= 0.7
    used = sum(int(epoch["samples"]) for epoch in job["epochs"])
    assert 12 * 120 - 2 * 16 <= used <= 12 * 120, "the other worker may be two halves of a batch behind"
    for rank in range(2):
        assert f"rank {rank} chooses fp32: what is pushed lies in memory that is shared with the shards" in lines


def test_what_does_not_go_together_is_named(up: Up) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        create(up, strategy="all_reduce", consistency={"mode": "asp"}, codec={"name": "int8"}, clip_norm=-1)
    assert refused.value.code == 400
    text = refused.value.read().decode()
    for field in ("spec.consistency.mode", "spec.codec.name", "spec.clip_norm"):
        assert field in text


@contextlib.asynccontextmanager
async def stopped(up: Up, rank: int, **fields: Any) -> AsyncIterator[tuple[TrainingClient, str]]:
    """A job of which one worker has stopped in the middle of its training."""
    name, stopped = create(up, **fields)["name"], 0
    async with TrainingClient(up.stack.addresses["TIDEMILL_TRAINING_ADDRESS"]) as client:
        async for job in client.watch_job(name):
            pids = [worker.pid for worker in job.workers if worker.rank == rank and worker.pid]
            if job.epochs and pids:
                stopped = pids[0]
                os.kill(stopped, signal.SIGSTOP)
                break
        assert stopped, job.error
        try:
            yield client, name
        finally:
            with contextlib.suppress(ProcessLookupError):  # it was ended with its job
                os.kill(stopped, signal.SIGCONT)


async def test_a_job_fails_and_says_who_was_late(up: Up) -> None:
    late = {"policy": "fail", "after_seconds": 3}
    async with stopped(up, 1, epochs=5000, stragglers=late) as (client, name):
        job = await client.wait_job(name)
    assert job.state == pb.Job.STATE_FAILED
    assert "worker 1 did not push for step" in job.error
    assert "within 3 s since the first worker did" in job.error
    assert job.restarts == 0, "a new worker would be late as well"


async def test_a_job_goes_on_without_late_workers(up: Up) -> None:
    late = {"policy": "drop", "most": 1}
    async with stopped(up, 2, workers=3, epochs=30, stragglers=late) as (client, name):
        job = await client.wait_job(name)
    assert job.state == pb.Job.STATE_SUCCEEDED, job.error
    assert len(job.epochs) == 30
    assert min(epoch.samples for epoch in job.epochs) < 120, "its samples were not used"
