"""The services behind the gateway, called by the name of an RPC."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry import trace

from tidemill import errors
from tidemill.api.artifacts.v1 import artifacts_pb2
from tidemill.api.compat.inference import service_pb2
from tidemill.api.registry.v1 import registry_pb2
from tidemill.api.training.v1 import training_pb2
from tidemill.gateway.config import GatewayConfig
from tidemill.rpc.caller import Caller, Metadata
from tidemill.rpc.methods import Method, methods
from tidemill.rpc.options import CONTROL_MESSAGE

HEALTH_SECONDS = 2.0


class Backend:
    """One service.

    Args:
        name: for messages and the status route.
        address: its `host:port`.
        services: descriptors of the gRPC services that it offers.
        tracer: makes the spans of the calls.
        timeout: default seconds of a call that is not a stream.
        max_message: largest message in bytes.
    """

    def __init__(
        self,
        name: str,
        address: str,
        services: Sequence[ServiceDescriptor],
        *,
        tracer: trace.Tracer | None,
        timeout: float,
        max_message: int = CONTROL_MESSAGE,
    ) -> None:
        self.name = name
        self.address = address
        self._caller = Caller(address, services, tracer=tracer, timeout=timeout, max_message=max_message)
        self.methods: dict[str, Method] = {}
        self._calls: dict[str, Any] = {}
        self._plain: dict[str, Any] = {}
        for service in services:
            for method in methods(service):
                rpc = f"{service.name}.{method.name}"
                self.methods[rpc] = method
                self._calls[rpc] = _bind(self._caller.channel, method)
                self._plain[rpc] = getattr(self._caller.channel, _kind(method))(method.path)
        self._health: Any = health_pb2_grpc.HealthStub(self._caller.channel)

    async def unary(self, rpc: str, request: Message, *, timeout: float | None = None) -> Any:
        """The response of the RPC `Service.Method`, within `timeout` seconds (default: the backend's own)."""
        with self._named():
            return await self._caller.unary(self._calls[rpc], request, timeout=timeout)

    async def serialized(self, rpc: str, request: bytes) -> bytes:
        """The same with serialized messages: for those that are too large to be copied for nothing."""
        with self._named():
            answer: bytes = await self._caller.unary(self._plain[rpc], request)
            return answer

    async def stream(self, rpc: str, request: Message) -> AsyncGenerator[Any, None]:
        """The responses of a streaming RPC. Closing the iterator cancels the call."""
        with self._named():
            responses = self._caller.stream(self._calls[rpc], request)
            try:
                async for response in responses:
                    yield response
            finally:
                await responses.aclose()

    async def converse(
        self, rpc: str, requests: AsyncIterable[bytes], metadata: Metadata = ()
    ) -> AsyncGenerator[bytes, None]:
        """The serialized responses to a stream of serialized requests. Closing the iterator cancels the call.

        Args:
            rpc: which one.
            requests: the requests.
            metadata: headers to send besides those of every call.
        """
        with self._named():
            responses = self._caller.stream(self._plain[rpc], requests, metadata=metadata)
            try:
                async for response in responses:
                    yield response
            finally:
                await responses.aclose()

    async def upload(self, rpc: str, requests: AsyncIterable[Message]) -> Any:
        """The response to a stream of requests."""
        with self._named():
            return await self._caller.upload(self._calls[rpc], requests)

    async def status(self) -> str:
        """What the service says of its health: `SERVING` or `NOT_SERVING`. Raises `Unavailable` without an answer."""
        with self._named():
            request = health_pb2.HealthCheckRequest()
            answer = await self._caller.unary(self._health.Check, request, timeout=HEALTH_SECONDS)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    async def check(self) -> None:
        """Return when the service can serve. Raises `Unavailable` when it cannot."""
        if await self.status() != "SERVING":
            raise errors.Unavailable(f"the {self.name} service is not ready", reason="BACKEND_NOT_READY")

    async def close(self) -> None:
        """Close the connection."""
        await self._caller.close()

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say which service does not answer, in place of gRPC's text about its sockets."""
        try:
            yield
        except errors.Unavailable as error:
            if error.reason != errors.Unavailable.default_reason:
                raise
            raise errors.Unavailable(
                f"the {self.name} service does not answer",
                reason="BACKEND_UNREACHABLE",
                metadata={"service": self.name},
                retry_after=1,
            ) from error


def _bind(channel: grpc.aio.Channel, method: Method) -> Any:
    return getattr(channel, _kind(method))(
        method.path,
        request_serializer=method.request.SerializeToString,
        response_deserializer=method.response.FromString,
    )


def _kind(method: Method) -> str:
    return f"{_arity(method.client_streaming)}_{_arity(method.server_streaming)}"


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """Every service that the gateway calls."""

    registry: Backend
    artifacts: Backend
    training: Backend
    inference: Backend

    @property
    def all(self) -> tuple[Backend, ...]:
        """All of them."""
        return (self.registry, self.artifacts, self.training, self.inference)

    def of(self, rpc: str) -> Backend:
        """The one that offers the RPC `Service.Method`."""
        return next(backend for backend in self.all if rpc in backend.methods)


def connect(config: GatewayConfig, tracer: trace.Tracer | None) -> Backends:
    """The services at the addresses that `config` names."""

    def backend(name: str, address: str, *services: ServiceDescriptor) -> Backend:
        return Backend(name, address, services, tracer=tracer, timeout=config.timeout_seconds)

    registry = registry_pb2.DESCRIPTOR.services_by_name
    return Backends(
        registry=backend(
            "registry", config.registry_address, registry["RegistryService"], registry["DiscoveryService"]
        ),
        artifacts=backend(
            "artifacts", config.artifacts_address, artifacts_pb2.DESCRIPTOR.services_by_name["ArtifactService"]
        ),
        training=backend(
            "training", config.training_address, training_pb2.DESCRIPTOR.services_by_name["TrainingService"]
        ),
        inference=connect_inference(config, tracer),
    )


def connect_inference(config: GatewayConfig, tracer: trace.Tracer | None) -> Backend:
    """The inference service at the address that `config` names."""
    return Backend(
        "inference",
        config.inference_address,
        [service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]],
        tracer=tracer,
        timeout=config.timeout_seconds,
        # An answer may be a little larger than the largest request.
        max_message=(config.max_body_mib << 20) + (1 << 20),
    )
