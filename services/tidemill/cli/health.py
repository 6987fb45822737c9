"""Health of a service, asked from outside."""

import asyncio
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from tidemill.errors import TidemillError
from tidemill.rpc.caller import Caller

TIMEOUT = 3.0


@dataclass(frozen=True, slots=True)
class Health:
    """What a service says of itself: SERVING, NOT_SERVING, or why there is no answer."""

    SERVING = "SERVING"

    service: str
    address: str
    status: str


async def ask(service: str, address: str) -> Health:
    """The answer of the standard gRPC health service at `address`."""
    caller = Caller(address, [health_pb2.DESCRIPTOR.services_by_name["Health"]], timeout=TIMEOUT)
    stub: Any = health_pb2_grpc.HealthStub(caller.channel)
    try:
        answer = await caller.unary(stub.Check, health_pb2.HealthCheckRequest())
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    except TidemillError as error:
        status = f"no answer: {error.reason.lower()}"
    finally:
        await caller.close()
    return Health(service, address, status)


async def ask_http(service: str, url: str) -> Health:
    """Whether an HTTP service answers at all."""
    return Health(service, url, await asyncio.to_thread(_ask_http, f"{url}/openapi.json"))


def _ask_http(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT):
            return Health.SERVING
    except (urllib.error.URLError, OSError) as error:
        return f"no answer: {getattr(error, 'reason', error)}"
