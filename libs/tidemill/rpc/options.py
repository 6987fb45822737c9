"""Channel and server options, with the reasons for their values."""

import json
from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

CONTROL_MESSAGE = 4 << 20
"""Largest message of a control call, in bytes."""
CHUNK = 1 << 20
"""Largest payload of one message of a bulk stream, in bytes: the size at which streams are fastest."""

Options = list[tuple[str, Any]]


def server_options(max_message: int = CONTROL_MESSAGE, *, shared: bool = False) -> Options:
    """Options of a server that takes messages of at most `max_message` bytes.

    Args:
        shared: whether other processes listen on the same port.
    """
    return [
        ("grpc.max_receive_message_length", max_message),
        ("grpc.max_send_message_length", max_message),
        # Two processes must not share a port unknowingly.
        ("grpc.so_reuseport", int(shared)),
        ("grpc.max_concurrent_streams", 256),
        ("grpc.max_metadata_size", 16384),
        # Our clients ping every 30 s, those of others as they like, which gRPC limits to once a second: no GOAWAY.
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", 30000),
        ("grpc.keepalive_timeout_ms", 10000),
    ]


def channel_options(
    services: Iterable[ServiceDescriptor] = (), max_message: int = CONTROL_MESSAGE, *, own_connection: bool = False
) -> Options:
    """Options of a channel; reads (`Get…`, `List…`) of `services` are retried while UNAVAILABLE, writes never.

    Args:
        services: the services that are called over the channel.
        max_message: largest message in bytes.
        own_connection: do not share a connection with other channels to the same address.
    """
    reads = [
        {"service": service.full_name, "method": method.name}
        for service in services
        for method in service.methods
        if method.name.startswith(("Get", "List")) and not method.server_streaming
    ]
    config: dict[str, Any] = {
        # More tokens than calls in flight: a single killed server must not switch retries off.
        "retryThrottling": {"maxTokens": 200, "tokenRatio": 0.1},
    }
    if reads:
        retry = {
            "maxAttempts": 4,
            "initialBackoff": "0.05s",
            "maxBackoff": "0.5s",
            "backoffMultiplier": 2,
            "retryableStatusCodes": ["UNAVAILABLE"],
        }
        config["methodConfig"] = [{"name": reads, "retryPolicy": retry}]
    options: Options = [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", max_message),
        ("grpc.max_send_message_length", max_message),
        ("grpc.keepalive_time_ms", 30000),
        ("grpc.keepalive_timeout_ms", 10000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 500),
        # Who has a connection of its own waits for this one server.
        ("grpc.max_reconnect_backoff_ms", 500 if own_connection else 2000),
    ]
    if own_connection:
        options.append(("grpc.use_local_subchannel_pool", 1))
    return options
