"""Puts the inference service together."""

import asyncio
import logging
from functools import partial
from importlib.metadata import version as release_of

from prometheus_client import Gauge

from tidemill import plugins
from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.registry import RegistryClient
from tidemill.clock import Clock, SystemClock
from tidemill.config import set_default
from tidemill.inference import runtimes
from tidemill.inference.assembly import Assembler
from tidemill.inference.config import InferenceConfig
from tidemill.inference.control import ModelControl
from tidemill.inference.custommetrics import CustomMetrics
from tidemill.inference.engine import Engine
from tidemill.inference.foldersource import from_folder
from tidemill.inference.fronts.build import ENVELOPE
from tidemill.inference.fronts.first import Everywhere, Fronts
from tidemill.inference.invocation import Invoker
from tidemill.inference.logsettings import LogSettings
from tidemill.inference.metrics import Metrics
from tidemill.inference.models import Building
from tidemill.inference.protocols.oip.servicer import INFER, SERVICE, Identity, Limits, OipServicer
from tidemill.inference.registrysource import from_registry
from tidemill.inference.repository import Repository
from tidemill.inference.responses import ResponseCache
from tidemill.inference.runtimes.base import Runtime, Settings
from tidemill.inference.scheduling import dynamic, sequence
from tidemill.inference.scheduling.ensemble import Ensembles
from tidemill.inference.sharedmemory.regions import Regions
from tidemill.inference.tracing import Tracing
from tidemill.rpc.app import App, observer, telemetry
from tidemill.rpc.server import Service, ThreadServer
from tidemill.telemetry import attributes
from tidemill.telemetry.setup import Telemetry

CPU = "CPUExecutionProvider"


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
        clock: times pauses, renewals and looks.

    Raises:
        NotFound: there is no such model repository.
    """
    # Read when ONNX Runtime is imported: a self-hosted platform reports to nobody.
    set_default("ORT_DISABLE_TELEMETRY", "1")
    signals = telemetry("inference", config)
    repository = Repository(config.default_alias)
    engine = Engine(signals.tracer, config.max_message_bytes)
    ensembles = Ensembles(repository, engine, signals.tracer, config.threads)
    app: App
    clock = clock or SystemClock()
    tracing = Tracing(signals.tracer, config.trace_sample)
    logs = LogSettings(logging.getLogger("tidemill"), logging.getLogger().handlers)
    fronts = Fronts(config, repository, signals.registry, lambda: (app.port, server.extra_ports), tracing, logs, clock)
    repository.published = fronts.changed
    building = Building(
        config=config,
        repository=repository,
        assembler=_assembler(config, signals, ensembles),
        settings=Settings(
            providers=tuple((name, {}) for name in config.providers),
            threads=config.intra_op_threads,
            invoke=Invoker(repository, engine),
            metrics=CustomMetrics(signals.registry),
        ),
        telemetry=signals,
        clock=clock,
        spool=fronts.spool,
    )
    if config.model_repository:
        models = from_folder(building)
    else:
        models = from_registry(building, registry=registry, artifacts=artifacts, address=lambda: app.address)
    state = _State()
    _count_loaded(repository, signals)
    regions = Regions() if config.allow_client_shm else None
    server = _server(config, repository, engine, signals, state, logs, regions, models.control, fronts, tracing)

    async def close() -> None:
        fronts.remove()
        await asyncio.to_thread(ensembles.close)
        logs.close()
        if regions is not None:
            regions.close()

    app = App(
        "inference",
        config,
        signals,
        server,
        starters=[partial(_check_providers, config), *models.starters],
        tasks=[*models.tasks, fronts.run],
        withdrawers=[fronts.withdraw],
        stoppers=[state.drain, *models.stoppers, fronts.close],
        closers=[*models.closers, close],
        clock=clock,
        metrics=fronts,
    )
    return app


class _State:
    """Whether requests are welcome."""

    def __init__(self) -> None:
        self.ready = True

    async def drain(self) -> None:
        """They are not any more."""
        self.ready = False


async def _check_providers(config: InferenceConfig) -> None:
    """Raises Invalid for an execution provider that is not there. Imports nothing for the CPU, which always is."""
    if config.providers == (CPU,):
        return
    kind = await asyncio.to_thread(plugins.load, runtimes, "onnx", Runtime)
    kind.check(Settings(providers=tuple((name, {}) for name in config.providers)))


def _assembler(config: InferenceConfig, signals: Telemetry, ensembles: Ensembles) -> Assembler:
    return Assembler(
        signals.tracer,
        Metrics(signals.registry),
        choices=(sequence.choose, partial(dynamic.choose, bound=config.max_waiting)),
        responses=ResponseCache(config.response_cache_bytes) if config.response_cache_bytes else None,
        compose=ensembles.compose,
    )


def _server(
    config: InferenceConfig,
    repository: Repository,
    engine: Engine,
    signals: Telemetry,
    state: _State,
    logs: LogSettings,
    regions: Regions | None,
    control: ModelControl | None,
    fronts: Fronts,
    tracing: Tracing,
) -> ThreadServer:
    servicer = OipServicer(
        repository,
        engine,
        Identity(config.server_name, release_of("tidemill")),
        lambda: state.ready,
        tracing=tracing,
        logs=logs,
        limits=Limits(
            largest=config.max_message_bytes,
            streams=config.max_streams or max(1, config.threads // 2),
            mirror=config.mirror_encoding,
        ),
        control=control and Everywhere(control, fronts),
        regions=regions,
        copies=fronts.snapshots,
    )
    return ThreadServer(
        [Service.of(pg.add_GRPCInferenceServiceServicer_to_server, servicer, SERVICE)],
        observer(config, signals),
        threads=config.threads,
        running=config.computing,
        brief={INFER: servicer.brief} if config.one_a_core else {},
        max_message=config.max_message_bytes + ENVELOPE,
        calls=config.max_waiting,
        silence=config.stream_idle_seconds,
        extra_ports=[] if config.second_port is None else [config.second_port],
        processes=config.processes,
        local=fronts.address,
        any_health=True,
    )


def _count_loaded(repository: Repository, signals: Telemetry) -> None:
    gauge = Gauge(attributes.METRIC_MODELS_LOADED, "Versions that can run now.", registry=signals.registry)
    gauge.set_function(lambda: sum(1 for _ in repository.index(only_ready=True)))
