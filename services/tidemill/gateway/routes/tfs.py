"""The REST API of TensorFlow Serving."""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from tidemill import errors, names
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.registry.v1 import registry_pb2
from tidemill.gateway.backends import Backend
from tidemill.gateway.bodies import Bodies
from tidemill.gateway.metadata import MetadataCache
from tidemill.gateway.problems import STATUSES, Refused, headers_of, status_of
from tidemill.gateway.protocols import tfs, tfs_response
from tidemill.gateway.route import Handler, Route, Table
from tidemill.gateway.routes import tfs_documents as documents
from tidemill.gateway.site import Front

_SERVICE = "GRPCInferenceService"
_STATUSES: Mapping[errors.Code, int] = {**STATUSES, errors.Code.FAILED_PRECONDITION: 400}
_STATES = {"READY": "AVAILABLE", "LOADING": "LOADING", "UNLOADING": "UNLOADING", "UNAVAILABLE": "END"}
_MISSING = frozenset({"MODEL_NOT_FOUND", "INVALID_VERSION", "VERSION_NOT_READY"})
"""Reasons of the inference service for a version that cannot be asked."""
_PREFIX = "/v1/"


class Tfs:
    """Handlers of the protocol."""

    def __init__(self, inference: Backend, registry: Backend, bodies: Bodies, metadata: MetadataCache) -> None:
        self._inference = inference
        self._registry = registry
        self._bodies = bodies
        self._metadata = metadata

    async def predict(self, request: Request) -> Response:
        """Asks a model."""
        spec = _Spec.of(request)
        async with self._bodies.received(request) as body:
            predict = tfs.parse(body)
        with spec.translated():
            answer = await self._ask(predict, spec)
        return Response(tfs_response.render(answer, rows=predict.rows), media_type="application/json")

    async def _ask(self, predict: tfs.Predict, spec: "_Spec") -> Any:
        metadata, remembered = await self._metadata.get(spec.model, spec.version)
        try:
            return await self._infer(tfs.request(predict, metadata, spec.model, spec.version))
        except (errors.Invalid, errors.NotFound):
            # Perhaps another version serves now, that takes something else.
            self._metadata.forget(spec.model, spec.version)
            if not remembered:
                raise
        metadata, _ = await self._metadata.get(spec.model, spec.version)
        return await self._infer(tfs.request(predict, metadata, spec.model, spec.version))

    async def _infer(self, message: pb.ModelInferRequest) -> Any:
        return await self._inference.unary(f"{_SERVICE}.ModelInfer", message)

    async def status(self, request: Request) -> Response:
        """What the versions of a model are doing."""
        spec = _Spec.of(request)
        version = await self._labelled(spec) if spec.label else spec.version
        index = await self._inference.unary(f"{_SERVICE}.RepositoryIndex", pb.RepositoryIndexRequest())
        found = [_state(entry) for entry in index.models if entry.name == spec.model and entry.version]
        if version:
            found = [state for state in found if state["version"] == version]
            if not found:
                raise errors.NotFound(f"Could not find version {version} of model {spec.model}")
        if not found:
            raise errors.NotFound(f"Could not find any versions of model {spec.model}")
        return _json({"model_version_status": sorted(found, key=lambda state: -int(state["version"]))})

    async def _labelled(self, spec: "_Spec") -> str:
        request = registry_pb2.GetAliasRequest(name=f"models/{spec.model}/aliases/{spec.label}")
        try:
            alias = await self._registry.unary("RegistryService.GetAlias", request)
        except errors.NotFound as error:
            raise spec.unknown() from error
        return str(alias.version)

    async def models(self, _: Request) -> Response:
        """Models are not listed by this protocol."""
        raise errors.Invalid("Missing model name in request.")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spec:
    """Which version of which model a request is for; one of `number` and `label`, or neither."""

    model: str
    number: str = ""
    label: str = ""

    @classmethod
    def of(cls, request: Request) -> "_Spec":
        """What the path says. Raises `Invalid` for what is no name."""
        given = request.path_params
        for parameter, value in given.items():
            names.check(value, parameter)
        return cls(model=given["model"], number=given.get("number", ""), label=given.get("label", ""))

    @property
    def version(self) -> str:
        """In the words of the inference service."""
        return self.label or self.number

    def unknown(self) -> errors.TidemillError:
        """What the protocol says when there is no such model, version or label."""
        if self.label:
            return errors.Invalid(f"Unrecognized servable version label: {self.label}", reason="UNKNOWN_LABEL")
        wanted = f"Specific({self.model}, {self.number})" if self.number else f"Latest({self.model})"
        return errors.NotFound(f"Servable not found for request: {wanted}", reason="MODEL_NOT_FOUND")

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Put the inference service's words about missing models into those of the protocol."""
        try:
            yield
        except errors.TidemillError as error:
            if error.reason in _MISSING:
                raise self.unknown() from error
            raise


def _state(entry: pb.RepositoryIndexResponse.ModelIndex) -> dict[str, Any]:
    failed = bool(entry.reason)
    return {
        "version": entry.version,
        "state": _STATES[entry.state],
        "status": {"error_code": "UNKNOWN" if failed else "OK", "error_message": entry.reason},
    }


def _json(value: Any) -> Response:
    return Response(json.dumps(value, indent=1), media_type="application/json")


def front(inference: Backend, registry: Backend, bodies: Bodies, metadata: MetadataCache) -> Front:
    """The protocol under `/v1`."""
    handlers = Tfs(inference, registry, bodies, metadata)
    named = "/v1/models/{model}"
    routes = [
        *_each("POST", named, ":predict", handlers.predict, documents.PREDICT),
        *_each("GET", named, "", handlers.status, documents.STATUS),
        Route(verb="GET", path="/v1/models", handler=handlers.models, operation=documents.MODELS),
    ]
    return Front(owns=owns, table=Table(routes, ignore_case=True), unknown=_unknown, render=render)


def _each(verb: str, named: str, suffix: str, handler: Handler, document: Mapping[str, Any]) -> list[Route]:
    """The route of a model, and those of one of its versions by number and by label."""
    forms = (("", ""), ("/versions/{number:int}", "Version"), ("/labels/{label}", "Label"))
    return [
        Route(
            verb=verb,
            path=f"{named}{form}{suffix}",
            handler=handler,
            operation={**document, "operationId": f"{document['operationId']}{ending}"},
        )
        for form, ending in forms
    ]


def owns(path: str) -> bool:
    """Whether a path belongs to the protocol."""
    return path.lower().startswith(_PREFIX)


def _unknown(verb: str, path: str, _: Collection[str]) -> errors.TidemillError:
    if owns(path):
        return errors.Invalid(f"Malformed request: {verb} {path[:256]}", reason="MALFORMED_REQUEST")
    return Refused(404, "there is no such path", reason="UNKNOWN_PATH")


def render(error: errors.TidemillError, request_id: str) -> Response:
    """The response to a request that ended with `error`, in the words of the protocol."""
    if error.reason == "UNKNOWN_PATH":
        return Response(status_code=404)
    body = json.dumps({"error": error.message}, separators=(",", ":"))
    return Response(body, status_of(error, _STATUSES), headers_of(error), media_type="application/json")
