"""Puts the registry service together."""

from tidemill.api.registry.v1 import registry_pb2 as pb
from tidemill.api.registry.v1 import registry_pb2_grpc as rpc
from tidemill.clock import Clock, SystemClock
from tidemill.kv.base import Kv
from tidemill.kv.open import open_kv
from tidemill.registry.commands import Commands
from tidemill.registry.config import RegistryConfig
from tidemill.registry.instances import Instances
from tidemill.registry.log import EventLog
from tidemill.registry.metrics import EventCounter, InstanceCounter
from tidemill.registry.models import Event
from tidemill.registry.queries import Queries
from tidemill.registry.servicer import DiscoveryServicer, RegistryServicer
from tidemill.registry.store import Store
from tidemill.registry.watch import Tail
from tidemill.rpc.app import App, observer, telemetry
from tidemill.rpc.server import AioServer, Service


def build(config: RegistryConfig, *, kv: Kv | None = None, clock: Clock | None = None) -> App:
    """The registry service.

    Args:
        config: its settings.
        kv: the store in place of the one that `config` names; stays the caller's to close.
        clock: the time for events, leases of an embedded store, and heartbeats.
    """
    clock = clock or SystemClock()
    signals = telemetry("registry", config)

    async def opener() -> Kv:
        if kv is not None:
            return kv
        return await open_kv(
            config.store, clock=clock, username=config.store_user, password=config.store_password, tls=config.tls
        )

    store = Store(opener, clock)
    tail = Tail(store, clock)
    counted = EventCounter(signals.registry)

    def appended(event: Event) -> None:
        tail.move(event.revision)
        counted.add(event)

    log = EventLog(store, clock, retention=config.event_retention, appended=appended)
    instances = Instances(store, clock)
    registry = RegistryServicer(Queries(store), Commands(log), log, tail, clock, heartbeat=config.heartbeat)
    services = pb.DESCRIPTOR.services_by_name
    server = AioServer(
        [
            Service.of(rpc.add_RegistryServiceServicer_to_server, registry, services["RegistryService"]),
            Service.of(
                rpc.add_DiscoveryServiceServicer_to_server, DiscoveryServicer(instances), services["DiscoveryService"]
            ),
        ],
        observer(config, signals),
    )
    live = InstanceCounter(instances, clock, signals.registry)

    async def close_watches() -> None:
        tail.close()

    return App(
        "registry",
        config,
        signals,
        server,
        checks={"store": store.check},
        starters=[store.open],
        tasks=[store.run, tail.run, live.run],
        stoppers=[close_watches],
        closers=[store.close] if kv is None else [],
        clock=clock,
    )
