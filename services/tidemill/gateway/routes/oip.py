"""The Open Inference Protocol over HTTP."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tidemill import errors, names
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.backends import Backend
from tidemill.gateway.bodies import Bodies
from tidemill.gateway.problems import STATUSES, Refused, headers_of, status_of
from tidemill.gateway.protocols import oip
from tidemill.gateway.route import Handler, Route, Table
from tidemill.gateway.routes import oip_documents as documents
from tidemill.gateway.site import Front

HEAD = "Inference-Header-Content-Length"
_SERVICE = "GRPCInferenceService"
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

    async def server(self, _: Request) -> Response:
        """Name, version and extensions of the server."""
        found = await self._call("ServerMetadata", pb.ServerMetadataRequest())
        return _json({"name": found.name, "version": found.version, "extensions": list(found.extensions)})

    async def live(self, _: Request) -> Response:
        """Whether the server is alive."""
        return await self._probe("live", "ServerLive", pb.ServerLiveRequest())

    async def ready(self, _: Request) -> Response:
        """Whether the server can serve."""
        return await self._probe("ready", "ServerReady", pb.ServerReadyRequest())

    async def _probe(self, what: str, rpc: str, message: Any) -> Response:
        try:
            found = await self._call(rpc, message)
        except errors.Unavailable as error:
            return _json({what: False, "error": error.message}, 503)
        value = bool(getattr(found, what))
        return _json({what: value}, 200 if value else 400)

    async def model(self, request: Request) -> Response:
        """Inputs, outputs and versions of a model."""
        model, version = _model(request)
        found = await self._call("ModelMetadata", pb.ModelMetadataRequest(name=model, version=version))
        return _json(
            {
                "name": found.name,
                "versions": list(found.versions),
                "platform": found.platform,
                "inputs": [_tensor(spec) for spec in found.inputs],
                "outputs": [_tensor(spec) for spec in found.outputs],
            }
        )

    async def model_ready(self, request: Request) -> Response:
        """Whether a model can be asked."""
        model, version = _model(request)
        found = await self._call("ModelReady", pb.ModelReadyRequest(name=model, version=version))
        if found.ready:
            return _json({"name": model, "ready": True})
        return _json({"name": model, "ready": False, "error": "Model version not ready"}, 400)

    async def infer(self, request: Request) -> Response:
        """Asks a model."""
        model, version = _model(request)
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
        return await self._inference.unary(f"{_SERVICE}.{rpc}", message)


def _model(request: Request) -> tuple[str, str]:
    parameters = request.path_params
    version = parameters.get("version", "")
    return names.check(parameters["model"], "model"), names.check(version, "version") if version else ""


def _head(request: Request) -> int | None:
    text = request.headers.get(HEAD)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise errors.invalid(HEAD, "must be a number of bytes")
    return int(text)


def _tensor(spec: Any) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _json(value: Mapping[str, Any], status: int = 200) -> Response:
    return JSONResponse(value, status)


def _both(verb: str, prefix: str, suffix: str, handler: Handler, document: Mapping[str, Any]) -> list[Route]:
    """The route of a model, and that of one of its versions."""
    named = f"{prefix}/models/{{model}}"
    versioned = {**document, "operationId": f"{document['operationId']}Version"}
    return [
        Route(verb=verb, path=f"{named}{suffix}", handler=handler, operation=document),
        Route(verb=verb, path=f"{named}/versions/{{version}}{suffix}", handler=handler, operation=versioned),
    ]


def front(inference: Backend, bodies: Bodies) -> Front:
    """The protocol under `/v2`."""
    handlers = Oip(inference, bodies)
    routes = [
        Route(verb="GET", path="/v2", handler=handlers.server, operation=documents.SERVER),
        Route(verb="GET", path="/v2/health/live", handler=handlers.live, operation=documents.LIVE, traced=False),
        Route(verb="GET", path="/v2/health/ready", handler=handlers.ready, operation=documents.READY, traced=False),
        *_both("GET", "/v2", "", handlers.model, documents.MODEL),
        *_both("GET", "/v2", "/ready", handlers.model_ready, documents.MODEL_READY),
        *_both("POST", "/v2", "/infer", handlers.infer, documents.INFER),
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
