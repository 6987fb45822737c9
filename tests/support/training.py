"""A training service with real neighbours, whose workers are scripted."""

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support import artifacts
from tests.support.registry import settings as registry_settings
from tests.support.serve import serving
from tests.support.shards import Shards, shards
from tests.support.wait import until
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.artifacts.app import build as build_artifacts
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.registry import RegistryClient
from tidemill.clients.training import TrainingClient
from tidemill.kv.base import Kv
from tidemill.registry.app import build as build_registry
from tidemill.rpc.app import App
from tidemill.training.app import build
from tidemill.training.config import TrainingConfig

SCRIPTED = (sys.executable, "-m", "tests.support.scripted_worker")
State = pb.Job.State


def spec(script: str = "", **fields: Any) -> dict[str, Any]:
    """A small job whose workers do what `script` says."""
    given = {
        "model": {"name": "mlp"},
        "dataset": {"builtin": "iris"},
        "epochs": 2,
        "code_revision": script,
    }
    return given | fields


@dataclass
class World:
    """Neighbours that run, and the settings of training services beside them."""

    folder: Path
    registry: RegistryClient
    artifacts: ArtifactsClient
    shards: Shards
    settings: dict[str, Any]
    apps: list[App] = field(default_factory=list)

    @property
    def gates(self) -> Path:
        """Where gates are opened."""
        return self.folder / "gates"

    def open_gate(self, name: str) -> None:
        """Let workers go on."""
        (self.gates / name).touch()

    def config(self, **settings: Any) -> TrainingConfig:
        """Settings of a training service."""
        return TrainingConfig(**{**self.settings, **settings})

    @asynccontextmanager
    async def training(self, *, kv: Kv | None = None, **settings: Any) -> AsyncIterator[TrainingClient]:
        """A client of a training service that runs while the block does."""
        app = build(self.config(**settings), kv=kv)
        async with serving(app) as address, TrainingClient(address, reconnect_for=10) as client:
            self.apps.append(app)
            yield client

    async def groups(self) -> list[str]:
        """Names of the groups on the first shard."""
        return [group.name async for group in self.shards.admin.list_groups()]


@asynccontextmanager
async def world(folder: Path, *, shard_count: int = 1) -> AsyncIterator[World]:
    """Registry, artifact service and parameter shards in this process; shards are announced."""
    (folder / "gates").mkdir()
    async with AsyncExitStack() as stack:
        registry_address = await stack.enter_async_context(serving(build_registry(registry_settings())))
        artifacts_address = await stack.enter_async_context(
            serving(build_artifacts(artifacts.config(folder / "artifacts")))
        )
        running = await stack.enter_async_context(shards(shard_count, registry_address=registry_address))
        registry = await stack.enter_async_context(RegistryClient(registry_address))
        store = await stack.enter_async_context(ArtifactsClient(artifacts_address))

        async def announced() -> bool:
            return len(await registry.list_instances("parameters")) == shard_count

        await until(announced)
        yield World(
            folder=folder,
            registry=registry,
            artifacts=store,
            shards=running,
            settings={
                "port": 0,
                "ops_port": 0,
                "data": str(folder / "training"),
                "store": f"sqlite:///{folder}/training.db",
                "registry_address": registry_address,
                "artifacts_address": artifacts_address,
                "worker_command": SCRIPTED,
                "worker_grace_seconds": 1.0,
                "shard_wait_seconds": 20.0,
                "lease_seconds": 1.0,
            },
        )


async def state(client: TrainingClient, job: pb.Job, *states: "State.ValueType") -> pb.Job:
    """The job once it is in one of these states, or has ended."""
    async for seen in client.watch_job(job.name):
        if seen.state in states:
            return seen
    raise AssertionError(f"{job.name} ended as {State.Name(seen.state)}: {seen.error}")


async def ended(client: TrainingClient, job: pb.Job, expected: "State.ValueType") -> pb.Job:
    """The job in its final state, which must be this one."""
    seen = await client.wait_job(job.name)
    if seen.state != expected:
        lines = [line.text async for line in client.logs(job.name)]
        raise AssertionError(f"{job.name} ended as {State.Name(seen.state)}: {seen.error}\n" + "\n".join(lines[-40:]))
    return seen


def alive(job: pb.Job) -> list[int]:
    """Process ids of a job's workers that there are still."""
    return [worker.pid for worker in job.workers if worker.pid and lives(worker.pid)]


def lives(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    """Process ids of what a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
