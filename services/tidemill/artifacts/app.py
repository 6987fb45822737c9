"""Puts the artifact service together."""

import logging
import re
from pathlib import Path

from tidemill import errors, plugins
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb
from tidemill.api.artifacts.v1 import artifacts_pb2_grpc as pg
from tidemill.artifacts import stores
from tidemill.artifacts.blobs import Blobs
from tidemill.artifacts.catalog import Catalog
from tidemill.artifacts.config import ArtifactsConfig
from tidemill.artifacts.keeper import Keeper
from tidemill.artifacts.metrics import Metrics
from tidemill.artifacts.sections import Sections
from tidemill.artifacts.servicer import ArtifactServicer
from tidemill.artifacts.stores.base import Store
from tidemill.artifacts.uploads import Limits, Uploads
from tidemill.clients.instances import Registration
from tidemill.clients.registry import RegistryClient
from tidemill.clock import Clock, SystemClock
from tidemill.datadir import DataDirectory
from tidemill.rpc.app import App, Hook, observer, telemetry
from tidemill.rpc.server import AioServer, Service

LOG = logging.getLogger(__name__)
SERVICE = pb.DESCRIPTOR.services_by_name["ArtifactService"]
FORMAT = 1
"""Version of what lies in the data directory."""
MAINTENANCE = 30.0
"""Seconds between two looks for uploads to give up and deletions to finish."""


class Maintenance:
    """What is done beside calls: idle uploads are given up, interrupted deletions finished."""

    def __init__(self, uploads: Uploads, catalog: Catalog, clock: Clock) -> None:
        self._uploads = uploads
        self._catalog = catalog
        self._clock = clock

    async def run(self) -> None:
        """Do it for ever."""
        while True:
            try:
                await self._uploads.expire()
                await self._catalog.finish_deletions()
            except errors.TidemillError as error:
                LOG.warning("maintenance is put off: %s", error.message, extra={"reason": error.reason})
            await self._clock.sleep(MAINTENANCE)


def build(config: ArtifactsConfig, *, store: Store | None = None, clock: Clock | None = None) -> App:
    """The service with these settings.

    Args:
        config: its settings.
        store: keeps the objects; the one that the settings name unless given.
        clock: the machine's unless given.

    Raises:
        Invalid: there is no such store, or its settings are wrong.
    """
    clock = clock or SystemClock()
    store = store or plugins.load(stores, config.store, Store).open(config)
    seen = telemetry("artifacts", config)
    metrics = Metrics(seen.registry)
    sections = Sections()
    blobs = Blobs(store, sections, metrics)
    catalog = Catalog(store, blobs, sections)
    directory = DataDirectory(Path(config.data), FORMAT)
    uploads = Uploads(directory.path / "uploads", blobs, sections, _limits(config), clock, metrics)
    servicer = ArtifactServicer(uploads, blobs, catalog)
    service = Service.of(pg.add_ArtifactServiceServicer_to_server, servicer, SERVICE)

    async def open_directory() -> None:
        directory.open()

    async def close_directory() -> None:
        directory.close()

    tasks: list[Hook] = [Maintenance(uploads, catalog, clock).run]
    stoppers: list[Hook] = []
    closers: list[Hook] = [sections.drain, uploads.close, store.close, close_directory]
    if config.registry_address:
        registry = RegistryClient(config.registry_address, tracer=seen.tracer)
        registration = Registration(
            registry,
            service="artifacts",
            instance_id=_instance_id(config),
            address=lambda: app.address,
            labels={"store": config.store},
            clock=clock,
        )
        tasks.append(registration.run)
        tasks.append(Keeper(registry, catalog, clock, config.reference_grace_seconds).run)
        stoppers.append(registration.withdraw)
        closers.append(registry.close)
    app = App(
        "artifacts",
        config,
        seen,
        AioServer([service], observer(config, seen)),
        checks={"store": store.check},
        starters=[open_directory, store.start, uploads.start],
        tasks=tasks,
        stoppers=stoppers,
        closers=closers,
        clock=clock,
    )
    return app


def _instance_id(config: ArtifactsConfig) -> str:
    """The same for a process that starts again: made of where it is reached."""
    place = config.advertise or f"{config.host}:{config.port}"
    return re.sub("[^A-Za-z0-9]+", "-", place).strip("-")


def _limits(config: ArtifactsConfig) -> Limits:
    return Limits(
        blob_bytes=config.max_blob_bytes,
        uploads=config.max_uploads,
        idle=config.upload_idle_seconds,
        start=config.upload_start_seconds,
        writer_stall=config.writer_stall_seconds,
        free_bytes=config.min_free_bytes,
    )
