"""The Open Inference Protocol over HTTP."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.backends import Backend
from tidemill.gateway.bodies import Bodies
from tidemill.gateway.problems import STATUSES, Refused, headers_of, status_of
from tidemill.gateway.protocols import oip
from tidemill.gateway.route import Table
from tidemill.gateway.routes import oip_control, oip_models
from tidemill.gateway.routes import oip_documents as documents
from tidemill.gateway.routes.oip_models import SERVICE, both, named
from tidemill.gateway.site import Front

HEAD = "Inference-Header-Content-Length"
_STATUSES: Mapping[errors.Code, int] = {
    # All that is the caller's fault is 400, as in the servers whose clients come here.
    **dict.fromkeys(errors.Code, 400),
    **{
        code: STATUSES[code]
        for code in (
            errors.Code.INTERNAL,
            errors.Code.UNKNOWN,
            errors.Code.DATA_LOSS,
            errors.Code.NOT_FOUND,
            errors.Code.UNAVAILABLE,
            errors.Code.UNIMPLEMENTED,
            errors.Code.UNAUTHENTICATED,
            errors.Code.PERMISSION_DENIED,
            errors.Code.RESOURCE_EXHAUSTED,
            errors.Code.DEADLINE_EXCEEDED,
        )
    },
}


class Oip:
    """Handlers of the protocol."""

    def __init__(self, inference: Backend, bodies: Bodies) -> None:
        self._inference = inference
        self._bodies = bodies

    async def infer(self, request: Request) -> Response:
        """Asks a model."""
        model, version = named(request)
        head = _head(request)
        async with self._bodies.received(request) as body:
            if head == 0:
                metadata = await self._call("ModelMetadata", pb.ModelMetadataRequest(name=model, version=version))
                message, binary = oip.raw_request(body, model, version, metadata), oip.Binary({}, True)
            else:
                message, binary = oip.parse(body, head, model, version)
            del body
            answer = await self._call("ModelInfer", message)
        content, length = oip.render(answer, binary)
        if length is None:
            return Response(content, media_type="application/json")
        return Response(content, headers={HEAD: str(length)}, media_type="application/octet-stream")

    async def _call(self, rpc: str, message: Any) -> Any:
        return await self._inference.unary(f"{SERVICE}.{rpc}", message)


def _head(request: Request) -> int | None:
    text = request.headers.get(HEAD)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise errors.invalid(HEAD, "must be a number of bytes")
    return int(text)


def front(inference: Backend, bodies: Bodies) -> Front:
    """The protocol under `/v2`."""
    handlers = Oip(inference, bodies)
    routes = [
        *oip_models.routes(inference),
        *both("POST", "/infer", handlers.infer, documents.INFER),
        *oip_control.routes(inference, bodies),
    ]
    return Front(owns=owns, table=Table(routes), unknown=_unknown, render=render)


def owns(path: str) -> bool:
    """Whether a path belongs to the protocol."""
    return path == "/v2" or path.startswith("/v2/")


def _unknown(verb: str, path: str, others: Collection[str]) -> errors.TidemillError:
    if others:
        allow = ", ".join(sorted(others))
        return Refused(405, f"{verb} is not allowed here", reason="METHOD_NOT_ALLOWED", headers={"Allow": allow})
    return errors.NotFound("there is no such path", reason="UNKNOWN_PATH")


def render(error: errors.TidemillError, request_id: str) -> Response:
    """The response to a request that ended with `error`, in the words of the protocol."""
    body = json.dumps({"error": error.message}, separators=(",", ":"))
    return Response(body, status_of(error, _STATUSES), headers_of(error), media_type="application/json")
