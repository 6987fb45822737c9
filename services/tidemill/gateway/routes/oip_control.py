"""Routes of the Open Inference Protocol that change things: repository, settings, shared memory."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tidemill import names
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.backends import Backend
from tidemill.gateway.bodies import Bodies, parse
from tidemill.gateway.protocols import oip_messages as messages
from tidemill.gateway.route import Handler, Route
from tidemill.gateway.routes import oip_documents as documents
from tidemill.gateway.routes.oip_models import SERVICE, named

LOAD_SECONDS = 600.0
"""Longest time that a model may take to load, unless the request asks for less."""


class Control:
    """Handlers of what changes."""

    def __init__(self, inference: Backend, bodies: Bodies) -> None:
        self._inference = inference
        self._bodies = bodies

    async def index(self, request: Request) -> Response:
        """The models of the repositories, and what their versions are doing."""
        given = await self._document(request)
        message = pb.RepositoryIndexRequest(
            repository_name=request.path_params.get("repository", ""), ready=messages.flag(given.get("ready"), "ready")
        )
        found = await self._call("RepositoryIndex", message)
        return JSONResponse([messages.document(entry) for entry in found.models])

    async def load(self, request: Request) -> Response:
        """Loads a model, or loads it again."""
        return await self._repository(request, "RepositoryModelLoad", pb.RepositoryModelLoadRequest())

    async def unload(self, request: Request) -> Response:
        """Unloads a model."""
        return await self._repository(request, "RepositoryModelUnload", pb.RepositoryModelUnloadRequest())

    async def _repository(self, request: Request, rpc: str, message: Any) -> Response:
        message.repository_name = request.path_params.get("repository", "")
        message.model_name, _ = named(request)
        messages.fill_repository(message.parameters, (await self._document(request)).get("parameters"))
        await self._call(rpc, message, LOAD_SECONDS)
        return Response()

    async def trace(self, request: Request) -> Response:
        """Trace settings, of one model or of the server."""
        model = request.path_params.get("model", "")
        if model:
            names.check(model, "model")
        given = await self._document(request) if request.method == "POST" else {}
        found = await self._call("TraceSetting", messages.trace_request(given, model))
        return JSONResponse(messages.trace_settings(found))

    async def logging(self, request: Request) -> Response:
        """Log settings."""
        given = await self._document(request) if request.method == "POST" else {}
        found = await self._call("LogSettings", messages.log_request(given))
        return JSONResponse(messages.log_settings(found))

    async def system_status(self, request: Request) -> Response:
        """Regions of system shared memory."""
        return await self._status("SystemSharedMemoryStatus", pb.SystemSharedMemoryStatusRequest(name=_region(request)))

    async def cuda_status(self, request: Request) -> Response:
        """Regions of CUDA memory."""
        return await self._status("CudaSharedMemoryStatus", pb.CudaSharedMemoryStatusRequest(name=_region(request)))

    async def _status(self, rpc: str, message: Any) -> Response:
        found = await self._call(rpc, message)
        return JSONResponse([messages.document(found.regions[name]) for name in sorted(found.regions)])

    async def system_register(self, request: Request) -> Response:
        """Maps a POSIX shared memory object."""
        given = await self._document(request)
        message = pb.SystemSharedMemoryRegisterRequest(
            name=_region(request),
            key=messages.text(given.get("key"), "key"),
            offset=messages.number(given.get("offset"), "offset"),
            byte_size=messages.number(given.get("byte_size"), "byte_size"),
        )
        await self._call("SystemSharedMemoryRegister", message)
        return Response()

    async def cuda_register(self, request: Request) -> Response:
        """Opens an allocation of another process."""
        given = await self._document(request)
        message = pb.CudaSharedMemoryRegisterRequest(
            name=_region(request),
            raw_handle=messages.cuda_handle(given.get("raw_handle")),
            device_id=messages.number(given.get("device_id"), "device_id", 2**63),
            byte_size=messages.number(given.get("byte_size"), "byte_size"),
        )
        await self._call("CudaSharedMemoryRegister", message)
        return Response()

    async def system_unregister(self, request: Request) -> Response:
        """Lets go of one region of system shared memory, or of all."""
        await self._call("SystemSharedMemoryUnregister", pb.SystemSharedMemoryUnregisterRequest(name=_region(request)))
        return Response()

    async def cuda_unregister(self, request: Request) -> Response:
        """Lets go of one region of CUDA memory, or of all."""
        await self._call("CudaSharedMemoryUnregister", pb.CudaSharedMemoryUnregisterRequest(name=_region(request)))
        return Response()

    async def _document(self, request: Request) -> Mapping[str, Any]:
        """The JSON object in the body; an empty body is an empty object."""
        async with self._bodies.received(request) as body:
            return messages.entries(parse(body), "body") if body else {}

    async def _call(self, rpc: str, message: Any, timeout: float | None = None) -> Any:
        return await self._inference.unary(f"{SERVICE}.{rpc}", message, timeout=timeout)


def _region(request: Request) -> str:
    return str(request.path_params.get("region", ""))


def routes(inference: Backend, bodies: Bodies) -> list[Route]:
    """What changes things under `/v2`."""
    handlers = Control(inference, bodies)

    def route(verb: str, path: str, handler: Handler, identifier: str, **others: Any) -> Route:
        return Route(verb=verb, path=path, handler=handler, operation=documents.CONTROL[identifier], **others)

    made = []
    for prefix, suffix in (("/v2/repository", ""), ("/v2/repository/{repository}", "In")):
        model = f"{prefix}/models/{{model}}"
        made += [
            route("POST", f"{prefix}/index", handlers.index, f"OipRepositoryIndex{suffix}"),
            route("POST", f"{model}/load", handlers.load, f"OipRepositoryModelLoad{suffix}", timed=False),
            route("POST", f"{model}/unload", handlers.unload, f"OipRepositoryModelUnload{suffix}", timed=False),
        ]
    for path, suffix in (("/v2/trace/setting", ""), ("/v2/models/{model}/trace/setting", "Of")):
        made += [
            route("GET", path, handlers.trace, f"OipTraceSettings{suffix}"),
            route("POST", path, handlers.trace, f"OipChangeTraceSettings{suffix}"),
        ]
    made += [
        route("GET", "/v2/logging", handlers.logging, "OipLogSettings"),
        route("POST", "/v2/logging", handlers.logging, "OipChangeLogSettings"),
    ]
    kinds: list[tuple[str, tuple[Callable[[Request], Awaitable[Response]], ...]]] = [
        ("System", (handlers.system_status, handlers.system_register, handlers.system_unregister)),
        ("Cuda", (handlers.cuda_status, handlers.cuda_register, handlers.cuda_unregister)),
    ]
    for kind, (status, register, unregister) in kinds:
        root, name = f"/v2/{kind.lower()}sharedmemory", f"Oip{kind}SharedMemory"
        made.append(route("POST", f"{root}/region/{{region}}/register", register, f"{name}Register"))
        for path, suffix in ((root, ""), (f"{root}/region/{{region}}", "Of")):
            made += [
                route("GET", f"{path}/status", status, f"{name}Status{suffix}"),
                route("POST", f"{path}/unregister", unregister, f"{name}Unregister{suffix}"),
            ]
    return made
