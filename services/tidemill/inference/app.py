"""Puts the inference service together."""

import asyncio
import logging
import os
import re
import secrets
from importlib.metadata import version as release_of
from pathlib import Path

from prometheus_client import Gauge

from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.instances import Registration
from tidemill.clients.registry import RegistryClient
from tidemill.clock import Clock, SystemClock
from tidemill.config import set_default
from tidemill.datadir import DataDirectory
from tidemill.errors import DataLoss, TidemillError
from tidemill.inference.assembly import Assembler
from tidemill.inference.config import InferenceConfig
from tidemill.inference.desired import Desired, SavedDesired
from tidemill.inference.downloads import Downloads
from tidemill.inference.engine import Engine
from tidemill.inference.follower import Follower
from tidemill.inference.loader import Loader
from tidemill.inference.logsettings import LogSettings
from tidemill.inference.metrics import Metrics
from tidemill.inference.protocols.oip.servicer import SERVICE, Identity, Limits, OipServicer
from tidemill.inference.reconciler import Reconciler
from tidemill.inference.repository import Repository
from tidemill.inference.runtimes.base import Settings
from tidemill.inference.sharedmemory.regions import Regions
from tidemill.inference.tracing import Tracing
from tidemill.rpc.app import App, observer, telemetry
from tidemill.rpc.server import Service, ThreadServer
from tidemill.telemetry import attributes
from tidemill.telemetry.setup import Telemetry

LOG = logging.getLogger(__name__)
FORMAT = 1
"""Version of what lies in the data directory."""
_ENVELOPE = 1 << 16
"""Bytes that a message may have beside its tensors."""


def build(
    config: InferenceConfig,
    *,
    registry: RegistryClient | None = None,
    artifacts: ArtifactsClient | None = None,
    clock: Clock | None = None,
) -> App:
    """The inference service.

    Args:
        config: its settings.
        registry: client of the registry in place of one for the address in `config`; stays the caller's to close.
        artifacts: the same for the artifact service.
        clock: times pauses and renewals.
    """
    # Read when ONNX Runtime is imported: a self-hosted platform reports to nobody.
    set_default("ORT_DISABLE_TELEMETRY", "1")
    clock = clock or SystemClock()
    signals = telemetry("inference", config)
    followed = registry or RegistryClient(config.registry_address, tracer=signals.tracer)
    source = artifacts or ArtifactsClient(config.artifacts_address, tracer=signals.tracer)
    directory = DataDirectory(Path(config.data), FORMAT)
    repository = Repository(config.default_alias)
    engine = Engine(signals.tracer, config.max_message_bytes)
    assembler = Assembler(signals.tracer, Metrics(signals.registry))
    loader = _loader(config, source, assembler, signals)
    reconciler = Reconciler(loader, repository, clock, settled=loader.tidy, concurrency=config.load_concurrency)
    state = _State(SavedDesired(Path(config.data) / "desired.json"), reconciler)
    _count_loaded(repository, signals)
    regions = Regions() if config.allow_client_shm else None
    logs = LogSettings(logging.getLogger("tidemill"), logging.getLogger().handlers)
    server = _server(config, repository, engine, signals, state, logs, regions)
    app: App
    registration = Registration(
        followed, service="inference", instance_id=_instance_id(config), address=lambda: app.address, clock=clock
    )

    async def close() -> None:
        for client, given in ((followed, registry), (source, artifacts)):
            if client is not given:
                await client.close()
        directory.close()
        logs.close()
        if regions is not None:
            regions.close()

    app = App(
        "inference",
        config,
        signals,
        server,
        starters=[lambda: asyncio.to_thread(directory.open), state.restore],
        tasks=[Follower(followed, state.want, clock).run, lambda: _announce(registration)],
        stoppers=[state.drain, registration.withdraw],
        closers=[reconciler.close, close],
        clock=clock,
    )
    return app


class _State:
    """What shall be served, on its way from the registry to the reconciler and, for a restart, to the disk."""

    def __init__(self, saved: SavedDesired, reconciler: Reconciler) -> None:
        self._saved = saved
        self._reconciler = reconciler
        self.ready = True

    async def restore(self) -> None:
        """Serve what was served before, until the registry says more."""
        try:
            desired = await asyncio.to_thread(self._saved.read)
        except DataLoss as error:
            LOG.error("what was served last is forgotten: %s", error.message)
            return
        if desired is not None:
            self._reconciler.want(desired)

    async def want(self, desired: Desired) -> None:
        """Serve this from now on, also after a restart."""
        try:
            await asyncio.to_thread(self._saved.write, desired)
        except OSError as error:  # serving goes on; only a restart without the registry would not know
            LOG.error("what shall be served cannot be saved", extra={"error": str(error)})
        self._reconciler.want(desired)

    async def drain(self) -> None:
        """Say that no more requests are welcome."""
        self.ready = False


def _loader(config: InferenceConfig, source: ArtifactsClient, assembler: Assembler, signals: Telemetry) -> Loader:
    return Loader(
        Downloads(source),
        Path(config.data),
        Settings(providers=tuple((name, {}) for name in config.providers), threads=config.intra_op_threads),
        assembler,
        signals,
        largest_model=config.max_model_bytes,
        cache_limit=config.cache_bytes,
    )


def _server(
    config: InferenceConfig,
    repository: Repository,
    engine: Engine,
    signals: Telemetry,
    state: _State,
    logs: LogSettings,
    regions: Regions | None,
) -> ThreadServer:
    threads = config.threads or max(4, 2 * (os.cpu_count() or 1))
    servicer = OipServicer(
        repository,
        engine,
        Identity(config.server_name, release_of("tidemill")),
        lambda: state.ready,
        tracing=Tracing(signals.tracer, config.trace_sample),
        logs=logs,
        limits=Limits(
            largest=config.max_message_bytes,
            streams=config.max_streams or max(1, threads // 2),
            mirror=config.mirror_encoding,
        ),
        regions=regions,
    )
    return ThreadServer(
        [Service.of(pg.add_GRPCInferenceServiceServicer_to_server, servicer, SERVICE)],
        observer(config, signals),
        threads=threads,
        max_message=config.max_message_bytes + _ENVELOPE,
        calls=config.max_waiting,
        silence=config.stream_idle_seconds,
        extra_ports=[] if config.second_port is None else [config.second_port],
    )


def _count_loaded(repository: Repository, signals: Telemetry) -> None:
    gauge = Gauge(attributes.METRIC_MODELS_LOADED, "Versions that can run now.", registry=signals.registry)
    gauge.set_function(lambda: sum(1 for _ in repository.index(only_ready=True)))


def _instance_id(config: InferenceConfig) -> str:
    """The same after a restart, and another one for another process."""
    if not config.advertise and not config.port:
        return secrets.token_hex(8)
    return re.sub(r"[^A-Za-z0-9]+", "-", config.advertise or f"{config.host}:{config.port}").strip("-")


async def _announce(registration: Registration) -> None:
    """Announce this instance; one that the registry will not have serves all the same."""
    try:
        await registration.run()
    except TidemillError as error:
        LOG.error("this instance is not announced", extra={"error": error.message, "reason": error.reason})
    await asyncio.Event().wait()
