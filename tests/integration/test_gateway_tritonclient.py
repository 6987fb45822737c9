"""An unmodified tritonclient over HTTP: compression, control, statistics, settings and shared memory."""

import asyncio
import json
from asyncio.subprocess import PIPE
from typing import Any

import pytest

from tests.support.gateway import serve_gateway
from tests.support.scripted_inference import serve_inference
from tests.support.venvs import ROOT, venv
from tidemill import errors
from tidemill.api.compat.inference import model_config_pb2 as mc
from tidemill.api.compat.inference import service_pb2 as pb

FLOATS = 40_000
"""Bytes of 10,000 elements."""


def infer(request: Any) -> pb.ModelInferResponse:
    """Zeros; for the model `shared` an output in shared memory."""
    made: Any = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    if request.model_name == "shared":
        made.outputs.add(name="s", datatype="FP32", shape=[2]).parameters.MergeFrom(request.outputs[0].parameters)
        made.raw_output_contents.append(b"")
    else:
        made.outputs.add(name="y", datatype="FP32", shape=[100, 100])
        made.raw_output_contents.append(request.raw_input_contents[0])
    found: pb.ModelInferResponse = made
    return found


def load(request: Any) -> Any:
    """Nothing, or the refusal of the model `bad`."""
    return errors.Internal("failed to load 'bad', no version is available") if request.model_name == "bad" else None


def answers() -> dict[str, Any]:
    """What the service says."""
    index: Any = pb.RepositoryIndexResponse()
    index.models.add(name="m", version="1", state="READY")
    statistics: Any = pb.ModelStatisticsResponse()
    statistics.model_stats.add(name="m", version="1", inference_count=3)
    trace, log = pb.TraceSettingResponse(), pb.LogSettingsResponse()
    trace.settings["trace_level"].value.append("OFF")
    log.settings["log_info"].bool_param = True
    system, cuda = pb.SystemSharedMemoryStatusResponse(), pb.CudaSharedMemoryStatusResponse()
    system.regions["r"].MergeFrom(system.RegionStatus(name="r", key="/k", offset=4, byte_size=8))
    cuda.regions["r"].MergeFrom(cuda.RegionStatus(name="r", device_id=0, byte_size=8))
    return {
        "ModelInfer": infer,
        "RepositoryModelLoad": load,
        "ModelConfig": pb.ModelConfigResponse(config=mc.ModelConfig(name="m", max_batch_size=4)),
        "RepositoryIndex": index,
        "ModelStatistics": statistics,
        "TraceSetting": trace,
        "LogSettings": log,
        "SystemSharedMemoryStatus": system,
        "CudaSharedMemoryStatus": cuda,
    }


@pytest.mark.timeout(600)
async def test_the_whole_client() -> None:
    python = await asyncio.to_thread(venv, "tritonclient")
    script = ROOT / "tests" / "support" / "triton_http_control.py"
    async with serve_inference() as (inference, address), serve_gateway(inference_address=address) as gateway:
        inference.answers = answers()
        process = await asyncio.create_subprocess_exec(
            str(python), str(script), f"127.0.0.1:{gateway.ports['oip']}", stdout=PIPE, stderr=PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, err.decode()
    seen = json.loads(out)
    assert seen["infer"] == [True] * 18
    assert seen["shared"]["parameters"] == {
        "shared_memory_region": "r", "shared_memory_byte_size": 8, "shared_memory_offset": 4
    }  # fmt: skip
    assert "data" not in seen["shared"]
    assert (seen["config"]["name"], seen["config"]["max_batch_size"]) == ("m", 4)
    assert seen["index"] == [{"name": "m", "version": "1", "state": "READY", "reason": ""}]
    assert seen["statistics"]["model_stats"][0]["inference_count"] == 3
    assert seen["of"] == seen["statistics"]
    assert (seen["trace"], seen["traced"]) == ({"trace_level": ["OFF"]},) * 2
    assert (seen["log"], seen["logged"]) == ({"log_info": True},) * 2
    assert seen["systems"] == [{"name": "r", "key": "/k", "offset": 4, "byte_size": 8}]
    assert seen["cudas"] == [{"name": "r", "device_id": 0, "byte_size": 8}]
    assert [seen[name] for name in ("load", "unload", "system", "cuda", "unregister")] == [None] * 4 + [[None, None]]
    assert seen["refusal"] == ["500", "failed to load 'bad', no version is available"]
    sent = {type(request).__name__: request for request in inference.requests}
    assert sent["CudaSharedMemoryRegisterRequest"].raw_handle == b"ABC"
    assert sent["RepositoryModelUnloadRequest"].parameters["unload_dependents"].bool_param
    first = inference.requests[0]
    assert len(first.raw_input_contents[0]) == FLOATS
    assert first.parameters["sequence_id"].int64_param == 7
    assert first.parameters["own"].string_param == "text"
    loads = [request for request in inference.requests if isinstance(request, pb.RepositoryModelLoadRequest)]
    assert loads[0].parameters["file:1/model.onnx"].bytes_param == b"\0\1"
