"""The health of every service."""

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tidemill import errors
from tidemill.gateway import openapi
from tidemill.gateway.backends import Backend, Backends
from tidemill.gateway.operations import ROOT
from tidemill.gateway.route import Route
from tidemill.gateway.schemas import PREFIX, Schema

STATUS_SCHEMA: Schema = {
    "type": "object",
    "required": ["ready", "services"],
    "properties": {
        "ready": {"type": "boolean", "description": "Whether every service can serve."},
        "services": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "address", "status"],
                "properties": {
                    "name": {"type": "string"},
                    "address": {"type": "string", "description": "host:port where it is called."},
                    "status": {"type": "string", "enum": ["SERVING", "NOT_SERVING", "UNREACHABLE"]},
                    "detail": {"type": "string", "description": "Why there is no answer."},
                },
            },
        },
    },
}


def status_route(backends: Backends) -> Route:
    """`GET /api/v1/status`: what every service says of its health now."""

    async def handle(request: Request) -> Response:
        services = await asyncio.gather(*(_ask(backend) for backend in backends.all))
        ready = all(service["status"] == "SERVING" for service in services)
        return JSONResponse({"ready": ready, "services": services}, headers={"Cache-Control": "no-store"})

    operation = {
        **openapi.described(
            "Status",
            "GetStatus",
            "Asks every service for its health. The status is 200 also when some cannot serve: `ready` tells.",
        ),
        "responses": {
            "200": openapi.answer("The health of every service.", {"application/json": {"$ref": PREFIX + "Status"}}),
            "default": openapi.PROBLEM,
        },
    }
    return Route(verb="GET", path=f"{ROOT}/status", handler=handle, operation=operation)


async def _ask(backend: Backend) -> dict[str, Any]:
    found = {"name": backend.name, "address": backend.address}
    try:
        return {**found, "status": await backend.status()}
    except errors.TidemillError as error:
        return {**found, "status": "UNREACHABLE", "detail": error.message}
