"""Routes of the Open Inference Protocol that read: the server, its models, their configurations and counters."""

import asyncio
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tidemill import errors, names
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.backends import Backend
from tidemill.gateway.protocols.oip_messages import document
from tidemill.gateway.route import Handler, Route
from tidemill.gateway.routes import oip_documents as documents

SERVICE = "GRPCInferenceService"


class Models:
    """Handlers of what is read."""

    def __init__(self, inference: Backend) -> None:
        self._inference = inference

    async def server(self, _: Request) -> Response:
        """Name, version and extensions of the server."""
        found = await self._call("ServerMetadata", pb.ServerMetadataRequest())
        return JSONResponse({"name": found.name, "version": found.version, "extensions": list(found.extensions)})

    async def live(self, _: Request) -> Response:
        """Whether the server is alive."""
        return await self._health("live")

    async def ready(self, _: Request) -> Response:
        """Whether the server can serve."""
        return await self._health("ready")

    async def _health(self, wanted: str) -> Response:
        """Both facts, as clients of either route look for theirs; the status is that of `wanted`."""
        try:
            live, ready = await asyncio.gather(
                self._call("ServerLive", pb.ServerLiveRequest()), self._call("ServerReady", pb.ServerReadyRequest())
            )
        except errors.Unavailable as error:
            return JSONResponse({"live": False, "ready": False, "error": error.message}, 503)
        found = {"live": bool(live.live), "ready": bool(ready.ready)}
        return JSONResponse(found, 200 if found[wanted] else 400)

    async def models(self, _: Request) -> Response:
        """Names of the models that can be asked."""
        found = await self._call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True))
        return JSONResponse({"models": sorted({entry.name for entry in found.models})})

    async def model(self, request: Request) -> Response:
        """Inputs, outputs and versions of a model."""
        model, version = named(request)
        found = await self._call("ModelMetadata", pb.ModelMetadataRequest(name=model, version=version))
        return JSONResponse(document(found))

    async def model_ready(self, request: Request) -> Response:
        """Whether a model can be asked."""
        model, version = named(request)
        found = await self._call("ModelReady", pb.ModelReadyRequest(name=model, version=version))
        if found.ready:
            return JSONResponse({"name": model, "ready": True})
        return JSONResponse({"name": model, "ready": False, "error": "Model version not ready"}, 400)

    async def config(self, request: Request) -> Response:
        """The configuration of a model."""
        model, version = named(request)
        found = await self._call("ModelConfig", pb.ModelConfigRequest(name=model, version=version))
        return JSONResponse(document(found.config))

    async def statistics(self, request: Request) -> Response:
        """Counters of one model, or of all."""
        model, version = named(request) if "model" in request.path_params else ("", "")
        found = await self._call("ModelStatistics", pb.ModelStatisticsRequest(name=model, version=version))
        return JSONResponse(document(found, whole=True))

    async def _call(self, rpc: str, message: Any) -> Any:
        return await self._inference.unary(f"{SERVICE}.{rpc}", message)


def named(request: Request) -> tuple[str, str]:
    """The model and the version, or "", that the path names. Raises `Invalid` for what is no name."""
    parameters = request.path_params
    version = parameters.get("version", "")
    return names.check(parameters["model"], "model"), names.check(version, "version") if version else ""


def both(verb: str, suffix: str, handler: Handler, document: Mapping[str, Any], *, timed: bool = True) -> list[Route]:
    """The route of a model, and that of one of its versions."""
    versioned = {**document, "operationId": f"{document['operationId']}Version"}
    return [
        Route(verb=verb, path=f"/v2/models/{part}{suffix}", handler=handler, operation=operation, timed=timed)
        for part, operation in (("{model}", document), ("{model}/versions/{version}", versioned))
    ]


def routes(inference: Backend) -> list[Route]:
    """What is read under `/v2`."""
    handlers = Models(inference)
    return [
        Route(verb="GET", path="/v2", handler=handlers.server, operation=documents.SERVER),
        Route(verb="GET", path="/v2/health/live", handler=handlers.live, operation=documents.LIVE, traced=False),
        Route(verb="GET", path="/v2/health/ready", handler=handlers.ready, operation=documents.READY, traced=False),
        Route(verb="GET", path="/v2/models", handler=handlers.models, operation=documents.MODELS),
        Route(verb="GET", path="/v2/models/stats", handler=handlers.statistics, operation=documents.ALL_STATISTICS),
        *both("GET", "", handlers.model, documents.MODEL),
        *both("GET", "/ready", handlers.model_ready, documents.MODEL_READY),
        *both("GET", "/config", handlers.config, documents.CONFIG),
        *both("GET", "/stats", handlers.statistics, documents.STATISTICS),
    ]
