"""The services that `watched_services` serves."""

from pathlib import Path
from typing import Any

from tidemill.gateway.server import HttpServer
from tidemill.rpc.app import App

NOWHERE = "127.0.0.1:9"
"""Where nobody listens."""


class Apps:
    """Services on free ports over directories in `folder`, each beside those that have been started before it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.started: dict[str, App] = {}

    def _neighbours(self, *names: str) -> dict[str, Any]:
        return {f"{name}_address": self.started[name].address if name in self.started else NOWHERE for name in names}

    def build(self, name: str) -> App:
        """The service `name`, not started."""
        data = self._folder / "data" / name
        common: dict[str, Any] = {"port": 0, "ops_port": 0}
        if name == "gateway":
            from tidemill.gateway import app as gateway
            from tidemill.gateway.config import GatewayConfig

            others = self._neighbours("registry", "artifacts", "training", "inference")
            return gateway.build(GatewayConfig(**common, oip_port=0, tfs_port=0, max_body_mib=16, **others))
        if name == "registry":
            from tidemill.registry import app as registry
            from tidemill.registry.config import RegistryConfig

            return registry.build(RegistryConfig(**common, store="sqlite::memory:"))
        if name == "artifacts":
            from tidemill.artifacts import app as artifacts
            from tidemill.artifacts.config import ArtifactsConfig

            return artifacts.build(ArtifactsConfig(**common, data=str(data), registry_address=""))
        if name == "parameters":
            from tidemill.parameters import app as parameters
            from tidemill.parameters.config import Config

            return parameters.build(Config(**common, shard=0, **self._neighbours("registry")))
        if name == "training":
            from tidemill.training import app as training
            from tidemill.training.config import TrainingConfig

            given = {"data": str(data), "store": "sqlite::memory:", **self._neighbours("registry", "artifacts")}
            return training.build(TrainingConfig(**common, worker_command=("/bin/false",), **given))
        from tidemill.inference import app as inference
        from tidemill.inference.config import InferenceConfig

        settings = {**common, "fronts": 1, "second_port": None}
        if name == "serving":  # what the registry says, beside `inference`, which serves a repository
            given = self._neighbours("registry", "artifacts")
            return inference.build(InferenceConfig(**settings, data=str(data), **given))
        return inference.build(
            InferenceConfig(
                **settings,
                model_repository=str(self._folder / "models"),
                model_control="explicit",
                load_models=("*",),
                allow_client_shm=True,
            )
        )

    def ports(self) -> dict[str, int]:
        """gRPC ports by service, and those of the gateway: `management`, `oip`, `tfs`."""
        found = {name: app.port for name, app in self.started.items()}
        for app in self.started.values():
            if isinstance(app.server, HttpServer):
                found |= app.server.ports
        return found
