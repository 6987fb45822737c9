"""Model repositories on disk, and servers over them."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support.inference import Serving
from tidemill.clients.inference import InferenceClient
from tidemill.clock import Clock
from tidemill.inference.app import build
from tidemill.inference.config import InferenceConfig


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
    await app.start()
    try:
        async with InferenceClient(app.address) as client:
            yield Serving(app, client, InMemorySpanExporter())
    finally:
        await app.stop(grace=1)


async def factor(serving: Serving, model: str, version: str = "") -> tuple[float, str]:
    """By how much a model of `onnxmodels.scale` multiplies, and the version that says so."""
    result = await serving.client.infer(model, {"x": np.ones((1, 2), np.float32)}, version=version)
    return float(result.outputs["y"][0, 0]), result.model_version


async def in_thread(work: Any, *arguments: Any) -> Any:
    """What a blocking call gives, made as the server's threads make it."""
    return await asyncio.to_thread(work, *arguments)
