"""Puts the training service together."""

import re
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from tidemill import plugins
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.api.training.v1 import training_pb2_grpc as rpc
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.instances import Registration as Announcement
from tidemill.clients.registry import RegistryClient
from tidemill.clock import Clock, SystemClock
from tidemill.datadir import DataDirectory
from tidemill.kv.base import Kv
from tidemill.kv.open import open_kv
from tidemill.rpc.app import App, observer, telemetry
from tidemill.rpc.server import AioServer, Service
from tidemill.telemetry.setup import Telemetry
from tidemill.training import launchers
from tidemill.training.changes import Changes
from tidemill.training.config import TrainingConfig
from tidemill.training.counters import Counters
from tidemill.training.crew import Patience
from tidemill.training.desk import Desk
from tidemill.training.diagnosis.inquiry import Inquiry
from tidemill.training.janitor import Janitor
from tidemill.training.launchers.base import Launcher, Settings
from tidemill.training.logs import Limits, LogDirectory
from tidemill.training.neighbours import ArtifactNeighbour, RegistryNeighbour, ShardNeighbours
from tidemill.training.placement import Placement
from tidemill.training.registration import Registration
from tidemill.training.scheduler import Scheduler
from tidemill.training.servicer import TrainingServicer
from tidemill.training.store import JobStore
from tidemill.training.tokens import Tokens
from tidemill.training.workers_servicer import WorkerServicer
from tidemill.training.workshop import Seat, Workshop

FORMAT = 2
"""Version of what lies in the data directory."""
WORKER = (sys.executable, "-m", "tidemill.training.worker")
TEMPLATE = (sys.executable, "-m", "tidemill.training.worker.template")


def build(config: TrainingConfig, *, kv: Kv | None = None, clock: Clock | None = None) -> App:
    """The training service.

    Args:
        config: its settings.
        kv: the store in place of the one that `config` names; stays the caller's to close.
        clock: the time.

    Raises:
        Invalid: there is no such launcher.
    """
    clock = clock or SystemClock()
    signals = telemetry("training", config)
    registry = RegistryClient(config.registry_address, tracer=signals.tracer)
    artifacts = ArtifactsClient(config.artifacts_address, tracer=signals.tracer)
    folder = DataDirectory(Path(config.data).absolute(), FORMAT)

    store = JobStore(lambda: _open(config, kv, clock))
    tokens: Tokens[Seat] = Tokens(lambda: scheduler.is_complete)
    shop = _workshop(
        config, folder.path, store, tokens, registry, artifacts, signals, clock, lambda: _environment(config, app)
    )
    janitor = Janitor(store, shop.shards, shop.artifacts, shop.changes, clock)
    scheduler = Scheduler(shop, janitor, most=config.max_running, lease=config.lease_seconds)
    desk = Desk(store, shop.changes, scheduler.view, shop.logs, shop.shards, shop.artifacts, clock, config.max_jobs)
    inquiry = Inquiry(store, scheduler.view, scheduler.sight, shop.shards, clock)
    announcement = Announcement(
        registry, service="training", instance_id=_instance_id(config), address=lambda: app.address, clock=clock
    )

    async def close_streams() -> None:
        shop.changes.close()

    async def open_folder() -> None:
        folder.open()

    async def close_folder() -> None:
        folder.close()

    server = AioServer(_services(desk, inquiry, shop), observer(config, signals))
    app = App(
        "training",
        config,
        signals,
        server,
        checks={"store": store.check},
        starters=[open_folder, store.open],
        tasks=[scheduler.follow, scheduler.run, announcement.run],
        stoppers=[announcement.withdraw, close_streams, scheduler.stop],
        closers=[
            shop.launcher.close,
            registry.close,
            artifacts.close,
            *([store.close] if kv is None else []),
            close_folder,
        ],
        clock=clock,
    )
    return app


async def _open(config: TrainingConfig, kv: Kv | None, clock: Clock) -> Kv:
    if kv is not None:
        return kv
    return await open_kv(
        config.store, clock=clock, username=config.store_user, password=config.store_password, tls=config.tls
    )


def _services(desk: Desk, inquiry: Inquiry, shop: Workshop) -> list[Service]:
    described = pb.DESCRIPTOR.services_by_name
    return [
        Service.of(
            rpc.add_TrainingServiceServicer_to_server, TrainingServicer(desk, inquiry), described["TrainingService"]
        ),
        Service.of(rpc.add_WorkerServiceServicer_to_server, WorkerServicer(shop.tokens), described["WorkerService"]),
    ]


def _workshop(
    config: TrainingConfig,
    folder: Path,
    store: JobStore,
    tokens: Tokens[Seat],
    registry: RegistryClient,
    artifacts: ArtifactsClient,
    signals: Telemetry,
    clock: Clock,
    environment: Callable[[], Mapping[str, str]],
) -> Workshop:
    shards = ShardNeighbours(registry, signals.tracer)
    artifact_store = ArtifactNeighbour(artifacts, config.artifacts_address)
    settings = Settings(
        command=config.worker_command or WORKER,
        template=TEMPLATE if config.worker_fork and not config.worker_command else (),
        threads=config.worker_threads,
        grace=config.worker_grace_seconds,
        scratch=folder / "scratch",
        abandoned=config.worker_abandoned_seconds,
        output_bytes=config.log_bytes,
        options=config.launcher_options,
    )
    return Workshop(
        owner=secrets.token_hex(8),
        store=store,
        changes=Changes(),
        logs=LogDirectory(folder / "logs", clock, Limits(lines=config.log_lines, bytes=config.log_bytes)),
        tokens=tokens,
        launcher=plugins.load(launchers, config.launcher, Launcher)(settings),
        shards=shards,
        artifacts=artifact_store,
        placement=Placement(shards, clock, config.shard_wait_seconds),
        registration=Registration(artifacts=artifact_store, registry=RegistryNeighbour(registry), clock=clock),
        environment=environment,
        patience=Patience(start=config.worker_start_seconds, heartbeat=config.worker_silence_seconds),
        group_patience=config.shard_wait_seconds,
        grace=config.worker_grace_seconds,
        clock=clock,
        tracer=signals.tracer,
        counters=Counters(signals.registry),
    )


def _environment(config: TrainingConfig, app: App) -> Mapping[str, str]:
    """Variables of every worker, as if it ran on this machine; a launcher for others knows what to change."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    return {
        "TIDEMILL_TRAINING_ADDRESS": f"[{host}]:{app.port}" if ":" in host else f"{host}:{app.port}",
        "TIDEMILL_TRACES": config.traces,
        "TIDEMILL_LOG_LEVEL": config.log_level,
    }


def _instance_id(config: TrainingConfig) -> str:
    """The same for a process that starts again: made of where it is reached."""
    place = config.advertise or f"{config.host}:{config.port}"
    return re.sub("[^A-Za-z0-9]+", "-", place).strip("-")
