"""A registry, an artifact service and inference servers in this process, each of which can be stopped and started."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.support import artifacts as artifact_service
from tests.support import registry as registry_service
from tests.support.ports import free_ports
from tests.support.wait import until
from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.artifacts.app import build as build_artifacts
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.inference import InferenceClient
from tidemill.clients.registry import RegistryClient
from tidemill.inference.app import build as build_inference
from tidemill.inference.config import InferenceConfig
from tidemill.registry.app import build as build_registry
from tidemill.rpc.app import App
from tidemill.rpc.server import ThreadServer


@dataclass
class Serving:
    """One running inference server."""

    app: App
    client: InferenceClient
    spans: InMemorySpanExporter

    @property
    def addresses(self) -> list[str]:
        """Where it serves: the same on each."""
        server = self.app.server
        assert isinstance(server, ThreadServer)
        return [f"127.0.0.1:{port}" for port in (self.app.port, *server.extra_ports)]

    async def serves(self, model: str, version: str = "") -> None:
        """Return when such a request would run."""
        await until(lambda: self.client.model_ready(model, version), what=f"{model} {version} is ready")

    async def states(self) -> dict[str, str]:
        """State of each `model/version` in the index."""
        return {f"{entry.name}/{entry.version}": entry.state for entry in await self.client.index()}

    async def reason(self, model: str, version: int) -> str:
        """Why a version is UNAVAILABLE, once it is."""

        async def find() -> str:
            for entry in await self.client.index():
                if (entry.name, entry.version, entry.state) == (model, str(version), "UNAVAILABLE"):
                    return entry.reason
            return ""

        return str(await until(find, what=f"{model}/{version} is unavailable"))


class Platform:
    """The services that inference depends on, over directories in `root`; as a context manager they run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._registry_port, self._artifacts_port = free_ports(2)
        self._apps: dict[str, App] = {}
        self.registry = RegistryClient(self.registry_address)
        self.artifacts = ArtifactsClient(self.artifacts_address)

    @property
    def registry_address(self) -> str:
        """Where the registry is, or will be again."""
        return f"127.0.0.1:{self._registry_port}"

    @property
    def artifacts_address(self) -> str:
        """Where the artifact service is, or will be again."""
        return f"127.0.0.1:{self._artifacts_port}"

    async def __aenter__(self) -> Self:
        await self.start("registry", "artifacts")
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.registry.close()
        await self.artifacts.close()
        await self.stop(*self._apps)

    async def start(self, *names: str) -> None:
        """Start `registry` or `artifacts`, on the port and the data that it had before."""
        for name in names:
            if name == "registry":
                store = f"sqlite:{self.root / 'registry.db'}"
                app = build_registry(registry_service.settings(port=self._registry_port, store=store))
            else:
                data = self.root / "artifacts"
                app = build_artifacts(artifact_service.config(data, port=self._artifacts_port))
            await app.start()
            self._apps[name] = app

    async def stop(self, *names: str) -> None:
        """Stop them."""
        for name in names:
            await self._apps.pop(name).stop(grace=0)

    async def publish(
        self, model: str, files: bytes | Mapping[str, bytes], alias: str = "champion", **version: Any
    ) -> int:
        """A new version of a model, which is made if need be, with an alias that points at it ("" = none)."""
        contents = {"model.onnx": files} if isinstance(files, bytes) else files
        artifact = await self.artifacts.create_artifact("model", contents)
        return await self.register(model, artifact.digest, alias, **version)

    async def register(self, model: str, digest: str, alias: str = "champion", **version: Any) -> int:
        """The same for an artifact that need not be there."""
        if not [found async for found in self.registry.list_models() if found.name == f"models/{model}"]:
            await self.registry.create_model(model)
        created: pb.ModelVersion = await self.registry.create_version(
            model, **{"format": "onnx", "artifact": digest, **version}
        )
        if alias:
            await self.registry.set_alias(model, alias, created.version)
        return created.version

    @asynccontextmanager
    async def inference(self, **settings: Any) -> AsyncIterator[Serving]:
        """A running inference server; it keeps its data from one to the next."""
        given: dict[str, Any] = {
            "fronts": 1,
            "port": 0,
            "second_port": 0,
            "ops_port": 0,
            "data": str(self.root / "inference"),
            "registry_address": self.registry_address,
            "artifacts_address": self.artifacts_address,
            **settings,
        }
        app = build_inference(InferenceConfig(**given))
        spans = InMemorySpanExporter()
        app.telemetry.provider.add_span_processor(SimpleSpanProcessor(spans))
        await app.start()
        try:
            async with InferenceClient(app.address) as client:
                yield Serving(app, client, spans)
        finally:
            await app.stop(grace=1)
