"""A gRPC server with health, reflection, observation of every call, and a drain; on asyncio or on threads."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Protocol

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer as AioHealthServicer
from grpc_reflection.v1alpha import reflection, reflection_pb2

from tidemill import errors
from tidemill.rpc.aioserver import AioInterceptor
from tidemill.rpc.anyhealth import AnyHealth
from tidemill.rpc.callpool import CallPool
from tidemill.rpc.observe import Observer
from tidemill.rpc.options import CONTROL_MESSAGE, server_options
from tidemill.rpc.probes import MORE_CALLS, REFLECTION_SILENCE, Probes
from tidemill.rpc.reflectionpool import reflection_pool
from tidemill.rpc.shortcut import AVAILABLE, Brief, Shortcut
from tidemill.rpc.silence import SILENCE, Silence
from tidemill.rpc.spread import check_free, deal_out
from tidemill.rpc.threadserver import ThreadInterceptor
from tidemill.slots import Slots

CALLS = 1024
"""Most calls at a time of a server on asyncio: streams, those of health and reflection, and others."""
PROBE_STREAMS = 128
"""Most streams of health and reflection at a time of a server on asyncio."""
STREAMS = 512
"""Most other streams at a time of a server on asyncio, unless it says otherwise."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service to be served.

    Args:
        add: the generated `add_XServicer_to_server`.
        servicer: the implementation: coroutines and async generators on asyncio, plain functions on threads.
        descriptor: of the service, for health and reflection.
    """

    add: Callable[[Any, Any], None]
    servicer: Any
    descriptor: ServiceDescriptor

    @classmethod
    def of(cls, add: Callable[[Any, Any], None], servicer: Any, descriptor: ServiceDescriptor) -> "Service":
        """A service of a generated module."""
        return cls(add, servicer, descriptor)

    @property
    def name(self) -> str:
        """Full name of the service."""
        return str(self.descriptor.full_name)


class Server(Protocol):
    """What an app needs of its server."""

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port (a free one for 0). Raises `Unavailable` with PORT_IN_USE."""

    async def set_serving(self, serving: bool) -> None:
        """Let health say SERVING or NOT_SERVING."""

    async def stop(self, grace: float) -> None:
        """Say NOT_SERVING, take no new calls, and end the others after `grace` seconds at most."""


class AioServer:
    """Serves on the running asyncio loop: for control services and for many waiting streams.

    Args:
        services: what is served.
        observer: sees every call.
        max_message: largest message in bytes.
        streams: streams at a time, of requests or responses; more are refused with RESOURCE_EXHAUSTED. There is always
            room for as many other calls, health among them, as `CALLS` leaves.
    """

    def __init__(
        self,
        services: Sequence[Service],
        observer: Observer,
        max_message: int = CONTROL_MESSAGE,
        *,
        streams: int = STREAMS,
    ) -> None:
        self._services = list(services)
        interceptor = AioInterceptor(
            observer,
            streams=Slots(streams, "streams", "TOO_MANY_STREAMS", retry_after=1),
            probes=Slots(PROBE_STREAMS, "streams of health and reflection", "TOO_MANY_STREAMS", retry_after=1),
        )
        self._server = grpc.aio.server(
            interceptors=[interceptor],
            options=server_options(max_message),
            maximum_concurrent_rpcs=max(CALLS, 2 * streams),
        )
        self._health = AioHealthServicer()
        _register(self._server, self._services, self._health)

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port.

        Raises:
            Unavailable: with reason PORT_IN_USE.
        """
        await self.set_serving(False)
        chosen = _bind(self._server, host, port)
        await self._server.start()
        return chosen

    async def set_serving(self, serving: bool) -> None:
        """Let health say SERVING or NOT_SERVING for the server and each service."""
        for name in ("", *(service.name for service in self._services)):
            await self._health.set(name, _status(serving))

    async def stop(self, grace: float) -> None:
        """Say NOT_SERVING, take no new calls, and end the others after `grace` seconds at most."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace)


class ThreadServer:
    """Serves on a pool of threads: for bulk data, where it is faster than asyncio. A waiting call holds its thread.

    Health and reflection have threads of their own, so that they answer when all others are at work.

    Args:
        services: what is served.
        observer: sees every call.
        threads: calls in work at a time.
        max_message: largest message in bytes.
        calls: calls in work and waiting together; more are refused with RESOURCE_EXHAUSTED; 0 = four a thread.
        running: calls that run at a time, those that wait for something not among them; 0 = as many as threads.
        brief: unary methods, by name, some of whose calls are brief: such a one is answered by the thread that reads
            it, which reads nothing else meanwhile.
        silence: seconds after which a call is cancelled whose client sends no message while it is waited for.
        reflection_silence: the same for reflection.
        extra_ports: further ports to serve the same on (a free one for 0); after `start` the ports that were bound.
        processes: how many processes share the ports, this one among them.
        first: whether this process is the first of them, which makes sure that nobody else has the ports.
        local: further address to serve the same on, as `unix:<path>`; "" = none.
        any_health: whether `Check` of health answers for services that are not here as for the server; else they are
            NOT_FOUND.
    """

    def __init__(
        self,
        services: Sequence[Service],
        observer: Observer,
        *,
        threads: int,
        max_message: int = CONTROL_MESSAGE,
        calls: int = 0,
        running: int = 0,
        brief: Mapping[str, Brief] | None = None,
        silence: float = SILENCE,
        reflection_silence: float = REFLECTION_SILENCE,
        extra_ports: Sequence[int] = (),
        processes: int = 1,
        first: bool = True,
        local: str = "",
        any_health: bool = False,
    ) -> None:
        self.extra_ports = tuple(extra_ports)
        self._processes = processes
        self._first = first
        self._local = local
        self._services = list(services)
        calls = calls or threads * 4
        self._pool = CallPool(threads, calls, running)
        self._probes = Probes(reflection_silence)
        self._silence = Silence(silence)
        self._server = grpc.server(
            self._pool,
            interceptors=[ThreadInterceptor(observer, self._pool, self._probes, self._silence)],
            options=server_options(max_message, shared=processes > 1),
            maximum_concurrent_rpcs=calls + MORE_CALLS,
        )
        names = [service.name for service in self._services]
        self._health = AnyHealth(names) if any_health else health.HealthServicer()
        _register(self._server, self._services, self._health)
        self._shortcut: Shortcut | None = None
        if brief and AVAILABLE:
            self._shortcut = Shortcut(self._server, self._pool, observer, brief)

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port.

        Raises:
            Unavailable: with reason PORT_IN_USE.
        """
        await self.set_serving(False)
        chosen = self._listen(host, port)
        self.extra_ports = tuple(self._listen(host, extra) for extra in self.extra_ports)
        if self._local:
            self._server.add_insecure_port(self._local)
        self._server.start()
        if self._shortcut is not None:
            self._shortcut.start()
        for bound in (chosen, *self.extra_ports):
            deal_out(bound, self._processes)
        return chosen

    def _listen(self, host: str, port: int) -> int:
        if self._processes > 1 and self._first and port:
            check_free(host, port)
        return _bind(self._server, host, port)

    async def set_serving(self, serving: bool) -> None:
        """Let health say SERVING or NOT_SERVING for the server and each service."""
        for name in ("", *(service.name for service in self._services)):
            self._health.set(name, _status(serving))

    async def stop(self, grace: float) -> None:
        """Say NOT_SERVING, take no new calls, and end the others after `grace` seconds at most."""
        self._health.enter_graceful_shutdown()
        stopped = self._server.stop(grace)
        await asyncio.to_thread(stopped.wait)
        self._silence.close()
        self._probes.close()
        self._pool.shutdown(wait=False, cancel_futures=True)


def _status(serving: bool) -> Any:
    return health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING


def _register(server: Any, services: Sequence[Service], health_servicer: Any) -> None:
    for service in services:
        service.add(service.servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    own = (module.DESCRIPTOR.services_by_name.values() for module in (health_pb2, reflection_pb2))
    described = [*(service.descriptor for service in services), *chain.from_iterable(own)]
    names = [str(descriptor.full_name) for descriptor in described]
    reflection.enable_server_reflection(names, server, reflection_pool(described))


def _bind(server: Any, host: str, port: int) -> int:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return int(server.add_insecure_port(target))
    except RuntimeError as error:
        raise errors.Unavailable(
            f"cannot listen on {target}: is the port in use?", reason="PORT_IN_USE", metadata={"address": target}
        ) from error
