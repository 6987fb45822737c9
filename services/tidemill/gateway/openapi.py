"""The OpenAPI 3.1 document, made of the route tables and the descriptors of the protos."""

from collections.abc import Iterable, Mapping
from typing import Any

from tidemill.gateway import queries, schemas
from tidemill.gateway.operations import Rpc
from tidemill.gateway.problems import MEDIA_TYPE
from tidemill.gateway.route import Route
from tidemill.gateway.schemas import PREFIX, Schema, comment
from tidemill.gateway.streams import EVENTS, LINES
from tidemill.rpc.methods import Method

VERSION = "3.1.0"
NAME: Schema = {"type": "string", "maxLength": 128, "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"}
PARAMETERS: Mapping[str, tuple[str, Schema]] = {
    "model": ("Name of the model.", NAME),
    "version": ("Number of the version, or an alias.", NAME),
    "number": ("Number of the version.", {"type": "string", "pattern": "^[0-9]+$"}),
    "alias": ("Name of the alias.", NAME),
    "label": ("Name of the alias.", NAME),
    "job": ("Name of the job.", NAME),
    "upload": ("Identifier of the upload.", NAME),
    "digest": ("SHA-256 of the manifest.", {"type": "string", "pattern": "^[0-9a-f]{64}$"}),
    "sha256": ("SHA-256 of the bytes.", {"type": "string", "pattern": "^[0-9a-f]{64}$"}),
    "file": ("A file of the documents.", NAME),
    "repository": ("Name of the repository.", NAME),
    "region": ("Name of the region.", {"type": "string", "minLength": 1}),
}
"""Every name that stands in a path template: what it is, and its schema."""


def operation(rpc: Rpc, method: Method) -> dict[str, Any]:
    """The OpenAPI operation of an RPC."""
    made = described(rpc.tag, method.name, schemas.comments()[method.path.lstrip("/").replace("/", ".")])
    made["parameters"] = [_query(field) for field in queries.fields(method.request, rpc.given)]
    if rpc.etag:
        made["parameters"].append(header("If-Match", "Only when the resource still has this etag."))
        if rpc.verb == "PUT":
            made["parameters"].append(header("If-None-Match", "`*`: only when the resource does not exist."))
    if rpc.resume[1]:
        made["parameters"].append(header("Last-Event-ID", "Go on after the event with this id."))
    if rpc.body:
        descriptor: Any = method.request.DESCRIPTOR
        if rpc.body != "*":
            descriptor = descriptor.fields_by_name[rpc.body].message_type
        made["requestBody"] = body({"application/json": schemas.reference(descriptor)})
    made["responses"] = {**_success(rpc, method), "default": PROBLEM}
    return made


def described(tag: str, identifier: str, text: str) -> dict[str, Any]:
    """The part of an operation that says what it is; the summary is the first sentence of `text`."""
    summary = text.split(". ")[0].split(": ")[0].rstrip(".")
    return {"tags": [tag], "operationId": identifier, "summary": summary, "description": text}


def body(content: Mapping[str, Schema], *, required: bool = True) -> dict[str, Any]:
    """A request body: media type -> schema."""
    return {"required": required, "content": {media: {"schema": schema} for media, schema in content.items()}}


def answer(text: str, content: Mapping[str, Schema] | None = None) -> dict[str, Any]:
    """A response: what it says, and media type -> schema."""
    if content is None:
        return {"description": text}
    return {"description": text, "content": {media: {"schema": schema} for media, schema in content.items()}}


def header(name: str, text: str) -> dict[str, Any]:
    """A request header that is a string."""
    return {"name": name, "in": "header", "description": text, "schema": {"type": "string"}}


def query(name: str, text: str, schema: Schema) -> dict[str, Any]:
    """A query parameter."""
    return {"name": name, "in": "query", "description": text, "schema": schema}


PROBLEM = answer("What went wrong.", {MEDIA_TYPE: {"$ref": PREFIX + "Problem"}})
PROBLEM_SCHEMA: Schema = {
    "type": "object",
    "description": "A problem document (RFC 9457).",
    "required": ["type", "title", "status", "detail", "reason", "request_id"],
    "properties": {
        "type": {"type": "string", "description": "`urn:tidemill:error:` and the reason."},
        "title": {"type": "string", "description": "The phrase of the status."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "What is wrong, for people."},
        "reason": {"type": "string", "description": "What is wrong, for programs: upper case, stable."},
        "request_id": {"type": "string", "description": "The id under which the logs know the request."},
        "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
        "violations": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "problem"],
                "properties": {"field": {"type": "string"}, "problem": {"type": "string"}},
            },
        },
        "retry_after": {"type": "number", "description": "Seconds after which the same request may succeed."},
    },
}


def _query(field: Any) -> dict[str, Any]:
    schema = schemas.of_field(field)
    text = schema.pop("description", "")
    return query(field.name, text, schema)


def _success(rpc: Rpc, method: Method) -> dict[str, Any]:
    descriptor: Any = method.response.DESCRIPTOR
    if not descriptor.fields:
        return {"204": answer("Done.")}
    schema = schemas.reference(descriptor)
    text = comment(descriptor)
    if not method.server_streaming:
        return {str(rpc.status): answer(text, {"application/json": schema})}
    events = (
        f"Events called `{rpc.event}`; one called `problem` and the end follow an error, one called `end` the last."
    )
    return {"200": answer(f"{text} {events}", {EVENTS: schema, LINES: schema})}


def document(routes: Iterable[Route], others: Mapping[str, Schema], *, title: str, version: str) -> dict[str, Any]:
    """The document of `routes`.

    Args:
        routes: the operations, in order.
        others: schemas by name, besides those of the protos.
        title: name of the API.
        version: version of the API.
    """
    paths: dict[str, dict[str, Any]] = {}
    tags: list[str] = []
    for route in routes:
        made = dict(route.operation)
        made["parameters"] = [*map(_path, route.parameters), *made.get("parameters", [])]
        paths.setdefault(route.template, {})[route.verb.lower()] = made
        tags += [tag for tag in made["tags"] if tag not in tags]
    return {
        "openapi": VERSION,
        "info": {"title": title, "version": version, "description": INTRODUCTION},
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {"schemas": schemas.components(paths, {"Problem": PROBLEM_SCHEMA, **others})},
    }


def _path(name: str) -> dict[str, Any]:
    text, schema = PARAMETERS[name]
    return {"name": name, "in": "path", "required": True, "description": text, "schema": schema}


INTRODUCTION = "\n".join(
    (
        "The management API under `/api/v1` is the gRPC API of the services, as JSON. Bodies are protobuf JSON with the"
        " field names of the protos: 64-bit integers come as strings (and may be sent as numbers), enums by name, times"
        " as RFC 3339, bytes as base64; empty fields are written out.",
        "Lists page with `page_size` and `page_token`. Changes are made conditional by `If-Match` with an `ETag`."
        " Errors are problem documents (RFC 9457).",
        "Every response has an `X-Request-ID`, taken from the request when it has one; `traceparent` is understood, and"
        " `X-Request-Timeout` is the time that a request may take, in seconds.",
        "`/v2` is the Open Inference Protocol and `/v1` the REST API of TensorFlow Serving: their errors are their"
        " own.",
    )
)
