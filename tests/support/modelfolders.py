"""Model repositories on disk, and servers over them."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.inference import Serving
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.clients.inference import InferenceClient
from tidemill.clock import Clock
from tidemill.inference.app import build
from tidemill.inference.config import InferenceConfig
from tidemill.rpc.caller import Caller

ONNX = 'platform: "onnxruntime_onnx"\n'
JSON = '{"backend": "onnxruntime"}'


class Folder:
    """A model repository in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def put(self, model: str, files: Mapping[str, bytes | str]) -> None:
        """Write files of a model, by path in its folder; one that is there gets another inode, as a copy would."""
        for path, data in files.items():
            target = self.root / model / path
            target.parent.mkdir(parents=True, exist_ok=True)
            new = target.with_name(f".{target.name}.new")
            new.write_bytes(data if isinstance(data, bytes) else data.encode())
            new.replace(target)

    def version(self, model: str, number: int, data: bytes, config: str | None = None) -> None:
        """Write one ONNX version, and the model's configuration if there is one."""
        self.put(model, {f"{number}/model.onnx": data, **({} if config is None else {"config.pbtxt": config})})


def settings(root: Path, **others: Any) -> InferenceConfig:
    """Settings of a server over a repository, on free ports."""
    given: dict[str, Any] = {
        "fronts": 1,
        "port": 0,
        "second_port": None,
        "ops_port": 0,
        "model_repository": str(root),
        **others,
    }
    return InferenceConfig(**given)


@asynccontextmanager
async def serve_folder(root: Path, *, clock: Clock | None = None, **others: Any) -> AsyncIterator[Serving]:
    """A server over a repository while the block runs."""
    app = build(settings(root, **others), clock=clock)
    try:
        await app.start()
        async with InferenceClient(app.address) as client:
            yield Serving(app, client, InMemorySpanExporter())
    finally:
        await app.stop(grace=1)


async def factor(serving: Serving, model: str, version: str = "") -> tuple[float, str]:
    """By how much a model of `onnxmodels.scale` multiplies, and the version that says so."""
    result = await serving.client.infer(model, {"x": np.ones((1, 2), np.float32)}, version=version)
    return float(result.outputs["y"][0, 0]), result.model_version


class Control:
    """Loads and unloads as clients do."""

    def __init__(self, address: str) -> None:
        self._caller = Caller(address, [pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]], timeout=20)
        self._stub: Any = pg.GRPCInferenceServiceStub(self._caller.channel)

    async def load(
        self, model: str, config: str = "", files: Mapping[str, bytes] | None = None, version: str = ""
    ) -> None:
        request = pb.RepositoryModelLoadRequest(model_name=model)
        if version:
            request.parameters["version"].string_param = version
        if config:
            request.parameters["config"].string_param = config
        for path, data in (files or {}).items():
            request.parameters[f"file:{path}"].bytes_param = data
        await self._caller.unary(self._stub.RepositoryModelLoad, request)

    async def unload(self, model: str, dependents: bool = False, version: str = "") -> None:
        request = pb.RepositoryModelUnloadRequest(model_name=model)
        if version:
            request.parameters["version"].string_param = version
        if dependents:
            request.parameters["unload_dependents"].bool_param = True
        await self._caller.unary(self._stub.RepositoryModelUnload, request)

    async def config(self, model: str) -> Any:
        answer = await self._caller.unary(self._stub.ModelConfig, pb.ModelConfigRequest(name=model))
        return answer.config

    async def close(self) -> None:
        await self._caller.close()


def ensemble(*steps: str) -> str:
    """The configuration of an ensemble that runs x through models one after the other."""
    parts = [
        f'{{ model_name: "{step}" model_version: -1 input_map {{ key: "x" value: "t{index}" }} '
        f'output_map {{ key: "y" value: "t{index + 1}" }} }}'
        for index, step in enumerate(steps)
    ]
    return (
        'platform: "ensemble" max_batch_size: 4 input { name: "t0" data_type: TYPE_FP32 dims: 2 } '
        f'output {{ name: "t{len(steps)}" data_type: TYPE_FP32 dims: 2 }} '
        f"ensemble_scheduling {{ step [ {', '.join(parts)} ] }}"
    )
