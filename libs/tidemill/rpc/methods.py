"""The methods of a gRPC service as a table, for handlers and calls made without the generated stub."""

from dataclasses import dataclass

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class Method:
    """One RPC: its path on the wire (`/package.Service/Name`) and what travels each way."""

    name: str
    path: str
    request: type[Message]
    response: type[Message]
    client_streaming: bool
    server_streaming: bool


def methods(service: ServiceDescriptor) -> tuple[Method, ...]:
    """The RPCs of a service, in the order of its proto file; the classes are those of the descriptor's pool."""
    return tuple(
        Method(
            name=method.name,
            path=f"/{service.full_name}/{method.name}",
            request=message_factory.GetMessageClass(method.input_type),
            response=message_factory.GetMessageClass(method.output_type),
            client_streaming=method.client_streaming,
            server_streaming=method.server_streaming,
        )
        for method in service.methods
    )
