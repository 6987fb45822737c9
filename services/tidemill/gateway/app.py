"""Puts the gateway together."""

import re
import secrets
from collections.abc import Callable, Collection
from importlib.metadata import version as release_of

from starlette.responses import Response

from tidemill import errors
from tidemill.clients.instances import Registration
from tidemill.clients.registry import RegistryClient
from tidemill.clock import Clock, SystemClock
from tidemill.gateway import problems
from tidemill.gateway.backends import Backend, Backends, connect, connect_inference
from tidemill.gateway.bodies import Bodies
from tidemill.gateway.config import GatewayConfig
from tidemill.gateway.hosts import Hosts
from tidemill.gateway.metadata import MetadataCache
from tidemill.gateway.observe import HttpObserver
from tidemill.gateway.problems import Refused
from tidemill.gateway.route import Route, Table
from tidemill.gateway.routes import (
    artifacts,
    blobs,
    documents,
    jobs,
    oip,
    oip_documents,
    registry,
    status,
    tfs,
    tfs_documents,
)
from tidemill.gateway.server import HttpServer
from tidemill.gateway.site import Front, Gate, Site
from tidemill.gateway.streams import Streams
from tidemill.gateway.transcode import Transcoder
from tidemill.rpc.app import App, authorizer, telemetry
from tidemill.telemetry.setup import Telemetry


def build(config: GatewayConfig, *, backends: Backends | None = None, clock: Clock | None = None) -> App:
    """The gateway.

    Args:
        config: its settings.
        backends: the services to call, in place of those at the addresses in `config`; closed with the app.
        clock: times renewals and what is remembered.
    """
    clock = clock or SystemClock()
    signals = telemetry("gateway", config)
    if config.inference_only:
        return _inference_alone(
            config, backends.inference if backends else connect_inference(config, signals.tracer), signals, clock
        )
    services = backends or connect(config, signals.tracer)
    streams = Streams()
    fronts = _fronts(config, services, streams, clock)
    server = _server(config, fronts, HttpObserver(signals, authorizer(config)), streams)
    announced = RegistryClient(config.registry_address, tracer=signals.tracer)
    app: App
    registration = Registration(
        announced, service="gateway", instance_id=_instance_id(config), address=lambda: app.address, clock=clock
    )
    app = App(
        "gateway",
        config,
        signals,
        server,
        checks={backend.name: backend.check for backend in services.all},
        tasks=[registration.run],
        stoppers=[registration.withdraw],
        closers=[announced.close, *(backend.close for backend in services.all)],
        clock=clock,
    )
    return app


def _inference_alone(config: GatewayConfig, inference: Backend, signals: Telemetry, clock: Clock) -> App:
    """The Open Inference Protocol alone, before an inference service that nobody else is with."""
    bodies = Bodies(config.max_body_mib << 20, config.max_buffered_mib << 20)
    streams = Streams()
    front = oip.front(inference, bodies, MetadataCache(inference, clock))
    site = _sites(config, {"oip": front}, HttpObserver(signals, authorizer(config)))("oip")
    server = HttpServer(site, {}, connections=config.max_connections, stopping=streams.stop, name="oip")
    return App(
        "gateway",
        config,
        signals,
        server,
        checks={inference.name: inference.check},
        closers=[inference.close],
        clock=clock,
    )


def _fronts(config: GatewayConfig, services: Backends, streams: Streams, clock: Clock) -> dict[str, Front]:
    bodies = Bodies(config.max_body_mib << 20, config.max_buffered_mib << 20)
    metadata = MetadataCache(services.inference, clock)
    found = {
        "oip": oip.front(services.inference, bodies, metadata),
        "tfs": tfs.front(services.inference, services.registry, bodies, metadata),
    }
    transcoder = Transcoder(services, bodies, streams)
    rpcs = (*jobs.RPCS, *registry.RPCS, *artifacts.RPCS)
    routes = [
        *map(transcoder.route, rpcs),
        *blobs.routes(services.artifacts),
        status.status_route(services),
    ]
    described = [*routes, *found["oip"].table.routes, *found["tfs"].table.routes]
    schemas = {**oip_documents.SCHEMAS, **tfs_documents.SCHEMAS, "Status": status.STATUS_SCHEMA}
    routes += documents.routes(described, schemas, version=release_of("tidemill"))
    return {"management": _management(routes), **found}


def _server(config: GatewayConfig, fronts: dict[str, Front], observer: HttpObserver, streams: Streams) -> HttpServer:
    site = _sites(config, fronts, observer)
    return HttpServer(
        site("management", "oip", "tfs"),
        {"oip": (config.oip_port, site("oip")), "tfs": (config.tfs_port, site("tfs"))},
        connections=config.max_connections,
        stopping=streams.stop,
    )


def _sites(config: GatewayConfig, fronts: dict[str, Front], observer: HttpObserver) -> Callable[..., Site]:
    """Makes sites of fronts, by their names."""
    hosts = Hosts(config.allowed_hosts, anything=config.allow_insecure_bind and not config.allowed_hosts)
    gate = Gate(config.max_requests)

    def site(*names: str) -> Site:
        return Site([fronts[name] for name in names], observer, gate, hosts, config.timeout_seconds)

    return site


def _management(routes: list[Route]) -> Front:
    """The management API and the documents: all paths that no other protocol owns."""
    return Front(owns=lambda _: False, table=Table(routes), unknown=_unknown, render=_render)


def _unknown(verb: str, path: str, others: Collection[str]) -> errors.TidemillError:
    if others:
        allow = ", ".join(sorted(others))
        return Refused(405, f"{verb} is not allowed here", reason="METHOD_NOT_ALLOWED", headers={"Allow": allow})
    return errors.NotFound("there is no such path; /openapi.json lists those there are", reason="UNKNOWN_PATH")


def _render(error: errors.TidemillError, request_id: str) -> Response:
    return problems.render(error, request_id)


def _instance_id(config: GatewayConfig) -> str:
    """The same after a restart, and another one for another process."""
    if not config.advertise and not config.port:
        return secrets.token_hex(8)
    return re.sub("[^A-Za-z0-9]+", "-", config.advertise or f"{config.host}:{config.port}").strip("-")
