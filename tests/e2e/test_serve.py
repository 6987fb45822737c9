"""`tidemill serve` as users run it."""

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import onnxmodels
from tests.support.modelfolders import Folder
from tests.support.servecommand import serve
from tests.support.up import free_offset, processes_of
from tests.support.wait import until
from tidemill.cli.stack import INFERENCE, INFERENCE_SECOND, MANAGEMENT, OIP_REST, OPS, REGISTRY, TFS_REST
from tidemill.clients.inference import InferenceClient
from tidemill.errors import Exhausted


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def get(port: int, path: str, body: Any = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            text = response.read()
            return response.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read() or b"null")


def metrics(port: int) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
        return bytes(response.read())


async def test_serves_a_directory_and_nothing_else(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "models")
    folder.version("double_onnx", 1, onnxmodels.scale(2))
    folder.version("broken", 1, b"broken")
    folder.version("later", 1, onnxmodels.scale(3))
    offset = free_offset()
    rest = OIP_REST + offset
    flags = ("--model-control", "explicit", "--load-model", "double_onnx", "--load-model", "broken")
    with serve(folder.root, offset, *flags, "--server-name", "triton", "--max-message-mib", "1") as process:
        async with InferenceClient(f"127.0.0.1:{INFERENCE + offset}") as client:
            assert (await client.server_metadata()).name == "triton"
            result = await client.infer("double_onnx", {"x": np.ones((1, 2), np.float32)})
            assert result.outputs["y"].tolist() == [[2, 2]]
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
            status, answer = get(rest, "/v2/models/double_onnx/infer", {"inputs": [tensor]})
            assert (status, answer["outputs"][0]["data"]) == (200, [2, 4])
            with pytest.raises(Exhausted):
                await client.infer("double_onnx", {"x": np.ones((1 << 18, 2), np.float32)})
            assert get(rest, "/v2/models/double_onnx/infer", "x" * (1 << 20))[0] == 413
            assert not await client.model_ready("broken")
            assert not await client.model_ready("later")
            assert get(rest, "/v2/repository/models/later/load", {})[0] == 200
            assert await client.model_ready("later")
            status, answer = get(rest, "/v2/repository/models/nope/load", {})
            assert (status, answer["error"]) == (500, "failed to load 'nope', failed to poll from model repository")
        assert get(rest, "/api/v1/status")[0] == 404
        others = (REGISTRY, INFERENCE_SECOND, TFS_REST, MANAGEMENT, OPS["registry"], OPS["training"])
        assert [port for port in others if listens(port + offset)] == []
        assert b"tidemill_" in metrics(OPS["inference"] + offset)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    await until(lambda: not processes_of(folder.root), what="nothing is left")
    assert sorted(os.listdir(tmp_path)) == ["models", "serve.log"]
    assert [port for port in (INFERENCE, OIP_REST, OPS["inference"], OPS["gateway"]) if listens(port + offset)] == []


def test_a_directory_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tidemill.cli", "serve", "--model-repository", str(tmp_path / "nope")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == f"tidemill: {tmp_path}/nope is no directory\n"
