"""What a user loses when something dies: nothing."""

import asyncio
import io
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load

from tests.support.datafiles import mnist_like, write_idx
from tests.support.up import ROOT, Up, platform, processes_of
from tests.support.wait import until
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.inference import InferenceClient
from tidemill.clients.registry import RegistryClient
from tidemill.clients.training import TrainingClient

pytestmark = pytest.mark.timeout(300)


def gone(up: Up) -> None:
    """No process of the platform is left within 10 s."""
    deadline = time.monotonic() + 10
    while left := up.processes():
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


async def weights(up: Up, job: pb.Job) -> dict[str, Any]:
    async with ArtifactsClient(up.stack.addresses["TIDEMILL_ARTIFACTS_ADDRESS"]) as client:
        artifact = await client.get_artifact(job.result.artifact)
        digest = next(file.sha256 for file in artifact.files if file.path == "model.safetensors")
        return dict(load(await client.download(digest)))


@pytest.mark.xdist_group("platform")
async def test_killed_workers_change_nothing(up: Up, trained: Any) -> None:
    """The model is bit for bit that of the undisturbed run, whoever dies: no sample was lost or counted twice."""
    async with TrainingClient(up.stack.addresses["TIDEMILL_TRAINING_ADDRESS"]) as client:
        calm = await client.get_job("jobs/main")
        name = (await client.create_job({**trained["spec"], "register_as": "models/shaken"})).name
        killed = epochs = 0
        async for job in client.watch_job(name):
            if job.restarts < killed:
                epochs = len(job.epochs)
            worker = next((w for w in job.workers if w.rank == killed), None)
            running = job.state == pb.Job.STATE_RUNNING and job.restarts == killed and len(job.epochs) > epochs
            if running and worker and worker.pid:  # rank 0 first; rank 1 once that one's successor has worked
                os.kill(worker.pid, signal.SIGKILL)
                killed += 1
        assert killed == 2
        assert job.state == pb.Job.STATE_SUCCEEDED, job.error
        assert job.restarts == 2
    assert [epoch.samples for epoch in job.epochs] == [epoch.samples for epoch in calm.epochs]
    assert len({epoch.samples for epoch in job.epochs}) == 1
    undisturbed, disturbed = await weights(up, calm), await weights(up, job)
    assert undisturbed.keys() == disturbed.keys()
    for tensor, value in undisturbed.items():
        np.testing.assert_array_equal(disturbed[tensor], value)


def test_killed_services_come_back_ctrl_c_leaves_nothing_and_a_restart_serves_again(tmp_path: Path) -> None:
    up = Up(tmp_path / "data")
    up.start()
    try:
        arguments = ["train", "mlp", "iris", "--epochs", "2", "--register", "kept", "--alias", "champion"]
        assert up.cli(*arguments).returncode == 0
        before = asyncio.run(_ask(up, "kept"))
        assert "another `tidemill up`" in _fails(up.data, "--port-offset", "9")
        for service in ("registry", "inference"):
            pid = next(pid for pid, line in up.processes().items() if f"tidemill.{service}" in line)
            os.kill(pid, signal.SIGKILL)
            asyncio.run(_answers(up))
            np.testing.assert_array_equal(asyncio.run(_ask(up, "kept")), before)
    finally:
        status = up.stop(signal.SIGINT)
    assert status == 0
    gone(up)
    with platform(tmp_path / "data", offset=up.stack.port_offset) as again:
        np.testing.assert_array_equal(asyncio.run(_ask(again, "kept")), before)
    gone(up)
    (up.data / "artifacts" / "FORMAT").write_text("999\n")
    assert "999" in _fails(up.data, "--port-offset", str(up.stack.port_offset))
    gone(up)


async def _ask(up: Up, model: str) -> Any:
    async with InferenceClient(up.stack.addresses["TIDEMILL_INFERENCE_ADDRESS"]) as client:
        await until(lambda: client.model_ready(model), 30)
        result = await client.infer(model, {"x": np.ones((2, 4), "f4")})
    return next(iter(result.outputs.values()))


def test_ctrl_c_while_starting_and_a_killed_supervisor_leave_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tidemill.cli", "up", "--data", str(tmp_path / "data")]
    up = Up(tmp_path / "data")
    command += ["--port-offset", str(up.stack.port_offset)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True)
    assert process.stderr is not None
    assert process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.stderr.read()
    assert process.wait(10) == 0
    process.stderr.close()
    gone(up)
    up.start()
    assert up.process is not None
    up.process.kill()
    up.stop()
    gone(up)


async def _answers(up: Up) -> None:
    def serving() -> bool:
        return up.cli("status").returncode == 0

    await until(lambda: asyncio.to_thread(serving), 40)
    async with RegistryClient(up.stack.addresses["TIDEMILL_REGISTRY_ADDRESS"]) as client:
        assert [model.name async for model in client.list_models()] == ["models/kept"]


def _fails(data: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "tidemill.cli", "up", "--data", str(data), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    up = Up(tmp_path / "data")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 7102 + up.stack.port_offset))
        taken.listen()
        said = _fails(tmp_path / "data", "--port-offset", str(up.stack.port_offset))
    assert not processes_of(tmp_path)
    assert f"127.0.0.1:{7102 + up.stack.port_offset}" in said
    assert "artifacts could not start" in said


def test_the_demo_keeps_its_promises(tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py")],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for door in ("OIP gRPC", "OIP REST", "predict REST"):
        assert door in done.stdout
    for service in ("gateway", "training", "worker", "parameters", "artifacts", "registry", "inference"):
        assert f"{service}  " in done.stdout
    assert not processes_of(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_demo_says_what_mnist_lacks_before_it_starts_anything(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
    assert done.returncode == 1
    assert "has no train-images-idx3-ubyte" in done.stdout
    assert "Starting" not in done.stdout


def test_ctrl_c_on_the_demo_leaves_nothing(tmp_path: Path) -> None:
    """It is interrupted while it learns from files as MNIST has them."""
    mnist = tmp_path / "mnist"
    mnist.mkdir()
    write_idx(mnist, mnist_like(train=4000), packed=True)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "demo.py"), "--data", str(mnist)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    out = io.StringIO()
    for line in process.stdout:
        out.write(line)
        if "is running" in line:
            process.send_signal(signal.SIGINT)
    assert "Interrupted" in out.getvalue(), out.getvalue()
    assert process.wait(10) == 130
    process.stdout.close()
    deadline = time.monotonic() + 10
    while left := processes_of(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
