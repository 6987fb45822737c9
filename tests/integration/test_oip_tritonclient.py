"""tritonclient with streams, shared memory, classification, statistics and settings."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import onnxmodels
from tests.support.inference import Platform
from tests.support.venvs import ROOT, venv

pytestmark = pytest.mark.timeout(600)


async def run(python: Path, address: str) -> Any:
    """What `triton_extensions.py` saw at an address."""
    script = ROOT / "tests" / "support" / "triton_extensions.py"
    process = await asyncio.create_subprocess_exec(
        str(python), "-W", "error", str(script), address, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def test_optional_parts(tmp_path: Path) -> None:
    python = await asyncio.to_thread(venv, "tritonclient")
    async with Platform(tmp_path) as platform:
        for name, data in {"simple": onnxmodels.sums(), "scores": onnxmodels.scale(1.0)}.items():
            await platform.publish(name, data)
        async with platform.inference(allow_client_shm=True) as serving:
            for name in ("simple", "scores"):
                await serving.serves(name)
            seen = await run(python, serving.addresses[0])
    assert seen["aio"] == [[str(value), 2 * value] for value in range(5)]
    found = seen["sync"]
    assert found["stream"] == [
        *([str(value), 2 * value] for value in range(20)),
        "Request for unknown model: 'nope' is not found",
        ["last", 198],
    ]
    assert found["classes"] == [[2], ["0.500000:1", "0.250000:0"]]
    assert found["gzip"] == found["deflate"] == [[6] * 4]
    assert found["parameters"] == [[2] * 4]
    assert found["statistics"] == ["simple", "1", True]
    assert found["trace"]["settings"]["trace_rate"] == {"value": ["5"]}
    assert found["trace again"]
    assert found["trace file"] == [
        "StatusCode.UNIMPLEMENTED",
        "trace file location can not be updated through network protocol",
    ]
    assert found["log"]["settings"]["log_verbose_level"] == {"uint32_param": 1}
    assert found["log file"] == [
        "StatusCode.UNIMPLEMENTED",
        "log file location can not be updated through network protocol",
    ]
    assert found["load"][0] == found["unload"][0] == "StatusCode.UNAVAILABLE"
    assert found["load"][1].startswith("explicit model load / unload is not allowed")
    assert found["shared"] == {
        "twice": ["StatusCode.ALREADY_EXISTS", "shared memory region 'input_data' already in manager"],
        "told": ["output_data"],
        "values": [[[7] * 4], [[3] * 4]],
        "regions": ["input_data", "output_data"],
        "beyond": [
            "StatusCode.INVALID_ARGUMENT",
            "input byte size mismatch for input 'a' for model 'simple'. Expected 16, got 20",
        ],
        "gone": ["StatusCode.NOT_FOUND", "Unable to find shared memory region: 'input_data'"],
        "status": ["StatusCode.NOT_FOUND", "Unable to find system shared memory region: 'input_data'"],
        "left": [],
        "cuda": [],
    }
