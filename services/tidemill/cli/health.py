"""Health of a service, asked from outside."""

import asyncio
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from tidemill.errors import TidemillError, Unavailable
from tidemill.rpc.caller import Caller

TIMEOUT = 3.0
NO_ANSWER = "no answer"


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
    except Unavailable:
        status = NO_ANSWER
    except TidemillError as error:
        status = f"{NO_ANSWER}: {error.reason.lower().replace('_', ' ')}"
    finally:
        await caller.close()
    return Health(service, address, status)


async def ask_http(service: str, url: str) -> Health:
    """Whether an HTTP service answers at all."""
    return Health(service, url, await asyncio.to_thread(_ask_http, f"{url.rstrip('/')}/openapi.json"))


def _ask_http(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT):
            return Health.SERVING
    except urllib.error.HTTPError as error:
        return f"{NO_ANSWER}: HTTP status {error.code}"
    except TimeoutError:
        return f"{NO_ANSWER}: deadline exceeded"
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        return NO_ANSWER if isinstance(reason, ConnectionError) else f"{NO_ANSWER}: {reason}"
