"""Serves what the registry's aliases point at: follows it, announces this instance, remembers it over a restart."""

import asyncio
import logging
import re
import secrets
from collections.abc import Callable
from pathlib import Path

from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.instances import Registration
from tidemill.clients.registry import RegistryClient
from tidemill.datadir import DataDirectory
from tidemill.errors import DataLoss, TidemillError
from tidemill.inference.artifactsource import ArtifactSource
from tidemill.inference.config import InferenceConfig
from tidemill.inference.desired import Desired, SavedDesired
from tidemill.inference.downloads import Downloads
from tidemill.inference.follower import Follower
from tidemill.inference.models import Building, Models
from tidemill.inference.reconciler import Reconciler

LOG = logging.getLogger(__name__)
FORMAT = 1
"""Version of what lies in the data directory."""


def from_registry(
    building: Building,
    *,
    registry: RegistryClient | None = None,
    artifacts: ArtifactsClient | None = None,
    address: Callable[[], str],
) -> Models:
    """Models of the registry.

    Args:
        registry, artifacts: clients in place of those for the addresses in the settings; stay the caller's to close.
        address: where this instance is found, once it is.
    """
    config, clock = building.config, building.clock
    followed = registry or RegistryClient(config.registry_address, tracer=building.telemetry.tracer)
    source = artifacts or ArtifactsClient(config.artifacts_address, tracer=building.telemetry.tracer)
    directory = DataDirectory(Path(config.data), FORMAT)
    loader = building.loader(
        ArtifactSource(
            Downloads(source), Path(config.data), cache_limit=config.cache_bytes, trust_jobs=config.trust_jobs
        ),
    )
    reconciler = Reconciler(
        loader, building.repository, clock, settled=loader.tidy, concurrency=config.load_concurrency
    )
    state = _State(SavedDesired(Path(config.data) / "desired.json"), reconciler)
    registration = Registration(
        followed, service="inference", instance_id=_instance_id(config), address=address, clock=clock
    )

    async def close() -> None:
        for client, given in ((followed, registry), (source, artifacts)):
            if client is not given:
                await client.close()
        directory.close()

    return Models(
        starters=[lambda: asyncio.to_thread(directory.open), state.restore],
        tasks=[Follower(followed, state.want, clock).run, lambda: _announce(registration)],
        stoppers=[registration.withdraw],
        closers=[reconciler.close, close],
    )


class _State:
    """What shall be served, on its way from the registry to the reconciler and, for a restart, to the disk."""

    def __init__(self, saved: SavedDesired, reconciler: Reconciler) -> None:
        self._saved = saved
        self._reconciler = reconciler

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
