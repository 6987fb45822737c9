"""Programs written for tritonclient work unchanged, on both ports."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto

from tests.support import onnxmodels
from tests.support.inference import Platform
from tests.support.venvs import ROOT, venv

pytestmark = pytest.mark.timeout(600)

TOTAL = [[2, 3, 4, 5]]


async def run(python: Path, address: str) -> Any:
    """What `triton_session.py` saw at an address."""
    script = ROOT / "tests" / "support" / "triton_session.py"
    process = await asyncio.create_subprocess_exec(
        str(python), "-W", "error", str(script), address, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def test_sync_and_aio_clients(tmp_path: Path) -> None:
    python = await asyncio.to_thread(venv, "tritonclient")
    async with Platform(tmp_path) as platform:
        models = {
            "simple": onnxmodels.sums(),
            "text": onnxmodels.identity(TensorProto.STRING),
            "flags": onnxmodels.identity(TensorProto.BOOL),
            "halves": onnxmodels.identity(TensorProto.BFLOAT16),
        }
        for name, data in models.items():
            await platform.publish(name, data)
        async with platform.inference(server_name="triton") as serving:
            for name in models:
                await serving.serves(name)
            seen = [await run(python, address) for address in serving.addresses]
    assert seen[0] == seen[1]
    assert seen[0]["aio"] == {"ready": True, "metadata": "simple", "totals": str(TOTAL)}
    assert seen[0]["sync"] == {
        "live": True,
        "ready": True,
        "models_ready": [True, True, False, False],
        "server": "triton",
        "metadata": ["onnxruntime_onnx", [["a", "INT32", [-1, 4]], ["b", "INT32", [-1, 4]]]],
        "infer": ["42", "1", ["difference", "total"]],
        "total": TOTAL,
        "alias": "1",
        "compressed": TOTAL,
        "typed": TOTAL,
        "bytes": ["grün", ""],
        "bool": [[True, False]],
        "bf16": [[1.5, -2.0]],
        "index": [[name, "1", "READY"] for name in sorted(models)],
        "unknown": ["StatusCode.NOT_FOUND", "Request for unknown model: 'nope' is not found"],
        "missing": [
            "StatusCode.INVALID_ARGUMENT",
            "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['a'], but missing required input(s) "
            "['b']. Please provide all required input(s).",
        ],
        "config": ["simple", "onnxruntime", [["a", 8, [-1, 4]], ["b", 8, [-1, 4]]]],
        "callback": TOTAL,
    }
