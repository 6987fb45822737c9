"""Puts a shard of the parameter server together."""

import asyncio
import os
from pathlib import Path

from tidemill.clients.instances import Registration
from tidemill.clients.registry import RegistryClient
from tidemill.clock import Clock, SystemClock
from tidemill.parameters import convert
from tidemill.parameters.config import Config
from tidemill.parameters.groups import Groups, Limits
from tidemill.parameters.metrics import Metrics
from tidemill.parameters.servicer import SERVICE, ParameterServicer, add_to_server
from tidemill.parameters.store import Code, Store
from tidemill.rpc import app
from tidemill.rpc.app import App, Hook
from tidemill.rpc.options import CHUNK
from tidemill.rpc.server import Service, ThreadServer
from tidemill.slots import Slots

OVERHEAD = 64 << 10
"""Bytes of a message around its chunk; small messages must fit as well."""


def build(config: Config, *, clock: Clock | None = None) -> App:
    """One shard as `config` says.

    Args:
        config: its settings.
        clock: the system's unless given.
    """
    clock = clock or SystemClock()
    telemetry = app.telemetry("parameters", config)
    metrics = Metrics(telemetry.registry)
    limits = Limits(
        bytes=config.max_bytes,
        groups=config.max_groups,
        waiting=config.waiting_pulls,
        optimizer_threads=config.optimizer_threads,
        lanes=config.lanes or min(4, os.cpu_count() or 1),
    )
    code = Code(encode=convert.encode, decode=convert.decode)
    store = Store(Path(config.data), code, config.log_bytes) if config.data else None
    groups = Groups(limits, clock=clock, tracer=telemetry.tracer, closed=metrics.round_closed, store=store)
    pulls = Slots(config.threads - config.reserved_threads, "pulls", "TOO_MANY_PULLS")
    pushes = Slots(config.threads - config.reserved_threads, "pushes and loads", "TOO_MANY_PUSHES")
    servicer = ParameterServicer(groups, pulls, pushes, metrics, share=config.shared_memory)
    server = ThreadServer(
        [Service.of(add_to_server, servicer, SERVICE)],
        app.observer(config, telemetry),
        # So many that pulls and pushes, each with all its places, leave some to the other calls.
        threads=2 * config.threads - config.reserved_threads,
        silence=config.silence_seconds,
        max_message=CHUNK + OVERHEAD,
    )

    async def recover() -> None:
        if store is not None:
            store.open()
            await asyncio.to_thread(groups.recover)

    async def release() -> None:
        await asyncio.to_thread(groups.stop)

    async def leave() -> None:
        if store is not None:
            store.close()

    tasks: list[Hook] = []
    stoppers: list[Hook] = [release]
    closers: list[Hook] = [leave]
    if config.registry_address:
        registry = RegistryClient(config.registry_address, tracer=telemetry.tracer)
        registration = Registration(
            registry,
            service="parameters",
            instance_id=f"shard-{config.shard}",
            address=lambda: shard.address,
            labels={"shard": str(config.shard)},
            ttl=config.instance_ttl,
            clock=clock,
        )
        tasks.append(registration.run)
        # First: nobody should be sent here any more.
        stoppers.insert(0, registration.withdraw)
        closers.append(registry.close)
    shard = App(
        "parameters",
        config,
        telemetry,
        server,
        starters=[recover],
        tasks=tasks,
        stoppers=stoppers,
        closers=closers,
        clock=clock,
    )
    return shard
