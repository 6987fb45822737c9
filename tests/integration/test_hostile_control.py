"""What comes in a request is no code, and names no files of the server."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support import onnxmodels, pythonmodels, torchmodels
from tests.support.inference import Serving
from tests.support.modelfolders import JSON, Control, Folder, factor, serve_folder
from tidemill.errors import Internal

TENSORS = {
    "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [2]}],
    "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2]}],
    "max_batch_size": 4,
}


@pytest.fixture
async def explicit(tmp_path: Path) -> AsyncIterator[tuple[Serving, Control, Folder]]:
    """A server that loads by request, the requests, and its repository."""
    folder = Folder(tmp_path / "models")
    async with serve_folder(folder.root, model_control="explicit") as serving:
        repository = Control(serving.app.address)
        yield serving, repository, folder
        await repository.close()


@pytest.mark.parametrize("backend", ["python", "pytorch"])
async def test_files_of_a_request_hold_no_code(explicit: tuple[Serving, Control, Folder], backend: str) -> None:
    _, repository, folder = explicit
    canary = folder.root.parent / "canary"
    file, data = {
        "python": ("model.py", f"open({str(canary)!r}, 'w')\n{pythonmodels.DOUBLE}".encode()),
        "pytorch": ("model.pt", torchmodels.scripted(torchmodels.Scale())),
    }[backend]
    config = json.dumps({"backend": backend, **TENSORS})
    with pytest.raises(Internal, match=r"failed to load 'm'.* are served from the operator's own repository only"):
        await repository.load("m", config, {f"1/{file}": data})
    folder.put("m", {f"1/{file}": data})
    assert not canary.exists()
    with pytest.raises(Internal, match="operator's own repository only"):  # nor beside what the operator has put there
        await repository.load("m", config, {f"1/{file}": data})
    assert not canary.exists()
    await repository.load("m", config)
    assert canary.exists() == (backend == "python")


async def test_a_configuration_of_a_request_names_no_files_to_libraries(
    explicit: tuple[Serving, Control, Folder],
) -> None:
    serving, repository, folder = explicit
    folder.version("m", 1, onnxmodels.scale(2))
    await repository.load("m", JSON)
    accelerator = {"name": "tensorrt", "parameters": {"trt_engine_cache_path": "/tmp"}}
    override = {
        **json.loads(JSON),
        "optimization": {"execution_accelerators": {"gpu_execution_accelerator": [accelerator]}},
    }
    for files in ({}, {"1/model.onnx": onnxmodels.scale(3)}):
        with pytest.raises(Internal, match="options of accelerators are for the operator's own repository only"):
            await repository.load("m", json.dumps(override), files)
    assert await factor(serving, "m") == (2, "1")


async def test_models_of_failed_requests_are_forgotten(explicit: tuple[Serving, Control, Folder]) -> None:
    """Else their files would fill the memory, under one name after the other."""
    serving, repository, folder = explicit
    folder.version("m", 1, onnxmodels.scale(2))
    await repository.load("m")
    for number in range(3):
        with pytest.raises(Internal, match=f"failed to load 'n{number}', version 1 is at UNAVAILABLE state"):
            await repository.load(f"n{number}", JSON, {"1/model.onnx": b"broken"})
    assert {entry.name for entry in await serving.client.index()} == {"m"}
    with pytest.raises(Internal):
        await repository.load("m", JSON, {"1/model.onnx": b"broken"})
    assert await factor(serving, "m") == (2, "1")
    await repository.load("n0", JSON, {"1/model.onnx": onnxmodels.scale(3)})
    assert await factor(serving, "n0") == (3, "1")
