"""The inference service as a process of its own."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

from tests.support import onnxmodels
from tests.support.inference import Platform
from tests.support.wait import until
from tidemill.clients.inference import InferenceClient

X = np.ones((1, 2), np.float32)


def environment(platform: Platform) -> dict[str, str]:
    """Of a service on free ports over the platform's directories."""
    own = {key: value for key, value in os.environ.items() if not key.startswith("TIDEMILL_")}
    return {
        **own,
        "TIDEMILL_REGISTRY_ADDRESS": platform.registry_address,
        "TIDEMILL_ARTIFACTS_ADDRESS": platform.artifacts_address,
        "TIDEMILL_INFERENCE_DATA": str(platform.root / "inference"),
        "TIDEMILL_INFERENCE_ANNOUNCE_FILE": str(platform.root / "ports.json"),
        "TIDEMILL_INFERENCE_PORT": "0",
        "TIDEMILL_INFERENCE_SECOND_PORT": "",
        "TIDEMILL_INFERENCE_OPS_PORT": "0",
    }


class Service:
    """A started process."""

    def __init__(self, platform: Platform, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self._announced = platform.root / "ports.json"

    async def ports(self) -> dict[str, int]:
        """Where it listens, once it does."""
        found: dict[str, int] = await until(self._read, timeout=60, what="the service listens")
        return found

    def _read(self) -> Any:
        assert self.process.poll() is None, "the service has ended"
        return json.loads(self._announced.read_text()) if self._announced.exists() else None


@contextmanager
def service(platform: Platform) -> Iterator[Service]:
    """A process that is killed at the end if it still runs."""
    (platform.root / "ports.json").unlink(missing_ok=True)
    with (platform.root / "inference.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tidemill.inference"],
            env=environment(platform),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield Service(platform, process)
    finally:
        process.kill()
        process.wait(30)


def metrics(port: int) -> bytes:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        shown: bytes = answer.read()
    return shown


async def test_survives_a_kill_without_anybody_to_ask(tmp_path: Path) -> None:
    async with Platform(tmp_path) as platform:
        await platform.publish("scale", onnxmodels.scale(3))
        with service(platform) as first:
            ports = await first.ports()
            async with InferenceClient(f"127.0.0.1:{ports['grpc']}") as client:
                await until(lambda: client.model_ready("scale"))
            first.process.kill()
            first.process.wait(30)
        await platform.stop("registry", "artifacts")
        with service(platform) as second:
            ports = await second.ports()
            async with InferenceClient(f"127.0.0.1:{ports['grpc']}") as client:
                await until(lambda: client.model_ready("scale"))
                assert (await client.infer("scale", {"x": X})).outputs["y"].tolist() == [[3, 3]]
            shown = await asyncio.to_thread(metrics, ports["ops"])
            assert b'tidemill_inferences_total{model="scale",outcome="success",version="1"} 1.0' in shown
            second.process.send_signal(signal.SIGTERM)
            assert second.process.wait(30) == 0


async def test_refuses_data_of_a_later_release(tmp_path: Path) -> None:
    platform = Platform(tmp_path)
    (tmp_path / "inference").mkdir()
    (tmp_path / "inference" / "FORMAT").write_text("99\n")
    with service(platform) as started:
        assert started.process.wait(60) == 2
    assert "DATA_VERSION_NEWER" in (tmp_path / "inference.log").read_text()
    await platform.registry.close()
    await platform.artifacts.close()


def test_serves_without_torch() -> None:
    program = """
import sys
from tidemill import plugins
from tidemill.inference import app, runtimes
from tidemill.inference.runtimes.base import Runtime
assert "onnxruntime" not in sys.modules
assert "torchscript" in plugins.names(runtimes)
plugins.load(runtimes, "onnx", Runtime)
assert "onnxruntime" in sys.modules
assert not {"torch", "onnx", "minio"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_client_is_light() -> None:
    program = """
import sys
import tidemill.clients.inference
assert not {"torch", "onnxruntime", "onnx", "minio"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
