"""Ensembles in a model repository, through a real server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import onnxmodels, torchmodels
from tests.support.inference import Serving
from tests.support.modelfolders import Folder, serve_folder
from tests.support.wait import until
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.errors import Invalid, Unavailable
from tidemill.rpc.caller import Caller

X = np.array([[1, 2]], np.float32)
TENSORS = """
input [ {{ name: "{0}" data_type: TYPE_FP32 dims: [ 2 ] }} ]
output [ {{ name: "{1}" data_type: TYPE_FP32 dims: [ 2 ] }} ]
"""
ENSEMBLE = (
    'platform: "ensemble" max_batch_size: 8'
    + TENSORS.format("IN", "OUT")
    + """
ensemble_scheduling { step [
  { model_name: "last" model_version: -1 input_map { key: "x" value: "b" } output_map { key: "y" value: "OUT" } },
  { model_name: "first" model_version: 1 input_map { key: "x" value: "IN" } output_map { key: "y" value: "a" } },
  { model_name: "script" model_version: -1
    input_map { key: "INPUT__0" value: "a" } output_map { key: "OUTPUT__0" value: "b" } }
] }
"""
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """ "all" is 2 * 3 * 5, in three steps: two of ONNX with TorchScript between them."""
    made = Folder(tmp_path / "models")
    made.version("first", 1, onnxmodels.scale(3), 'platform: "onnxruntime_onnx" max_batch_size: 8')
    made.version("last", 1, onnxmodels.scale(5), 'backend: "onnxruntime" max_batch_size: 8 dynamic_batching { }')
    config = 'platform: "pytorch_libtorch" max_batch_size: 8' + TENSORS.format("INPUT__0", "OUTPUT__0")
    made.put("script", {"1/model.pt": torchmodels.scripted(torchmodels.Scale()), "config.pbtxt": config})
    made.put("all", {"config.pbtxt": ENSEMBLE})
    (made.root / "all/1").mkdir()
    return made


async def test_an_ensemble_runs_its_steps(folder: Folder) -> None:
    async with serve_folder(folder.root) as serving:
        await serving.serves("all")
        result = await serving.client.infer("all", {"IN": X})
        np.testing.assert_array_equal(result.outputs["OUT"], 30 * X)
        metadata = await serving.client.metadata("all")
        assert metadata.platform == "ensemble"
        with pytest.raises(Invalid, match="batch-size must be <= 8 for 'all'"):
            await serving.client.infer("all", {"IN": np.ones((9, 2), np.float32)})


async def test_an_ensemble_goes_and_comes_with_its_models(folder: Folder) -> None:
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    async with (
        serve_folder(folder.root, model_control="explicit") as serving,
        _closing(Caller(serving.app.address, [service], timeout=20)) as caller,
    ):
        stub: Any = pg.GRPCInferenceServiceStub(caller.channel)
        await caller.unary(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="all"))
        np.testing.assert_array_equal((await serving.client.infer("all", {"IN": X})).outputs["OUT"], 30 * X)
        await caller.unary(stub.RepositoryModelUnload, pb.RepositoryModelUnloadRequest(model_name="last"))
        await until(lambda: _state(serving, "all/1", "UNAVAILABLE"), what="the ensemble is away")
        assert not await serving.client.model_ready("all")
        with pytest.raises(Unavailable, match="'all' version 1 is not at ready state"):
            await serving.client.infer("all", {"IN": X}, version="1")
        await caller.unary(stub.RepositoryModelLoad, pb.RepositoryModelLoadRequest(model_name="last"))
        assert await serving.client.model_ready("all")
        np.testing.assert_array_equal((await serving.client.infer("all", {"IN": X})).outputs["OUT"], 30 * X)


@asynccontextmanager
async def _closing(caller: Caller) -> AsyncIterator[Caller]:
    try:
        yield caller
    finally:
        await caller.close()


async def _state(serving: Serving, version: str, state: str) -> bool:
    return (await serving.states())[version] == state


async def test_unknown_execution_providers_are_refused_when_the_server_starts(folder: Folder) -> None:
    with pytest.raises(Invalid, match="NopeExecutionProvider"):
        async with serve_folder(folder.root, providers=("NopeExecutionProvider",)):
            pass


async def test_a_wrong_ensemble_says_why_and_harms_nobody(folder: Folder) -> None:
    wrong = ENSEMBLE.replace('key: "x" value: "IN"', 'key: "z" value: "IN"')
    folder.put("wrong", {"config.pbtxt": wrong})
    (folder.root / "wrong/1").mkdir()
    async with serve_folder(folder.root) as serving:
        assert "model 'first' has no input 'z'" in await serving.reason("wrong", 1)
        await serving.serves("all")
