"""Turns HTTP requests into request messages, and messages into JSON."""

import json
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from tidemill import errors, names
from tidemill.gateway import openapi
from tidemill.gateway.backends import Backends
from tidemill.gateway.bodies import Bodies, parse
from tidemill.gateway.operations import ROOT, Rpc
from tidemill.gateway.problems import Refused
from tidemill.gateway.queries import fill
from tidemill.gateway.route import Handler, Route
from tidemill.gateway.streams import Item, Streams
from tidemill.rpc.methods import Method
from tidemill.rpc.options import CONTROL_MESSAGE


class Transcoder:
    """Makes routes of RPCs."""

    def __init__(self, backends: Backends, bodies: Bodies, streams: Streams) -> None:
        self._backends = backends
        self._bodies = bodies
        self._streams = streams

    def route(self, rpc: Rpc) -> Route:
        """The route of one RPC."""
        method = self._backends.of(rpc.call).methods[rpc.call]
        handler = self._streaming(rpc, method) if method.server_streaming else self._unary(rpc, method)
        return Route(
            verb=rpc.verb,
            path=f"{ROOT}{rpc.path}",
            handler=handler,
            operation=openapi.operation(rpc, method),
            timed=not method.server_streaming,
        )

    def _unary(self, rpc: Rpc, method: Method) -> Handler:
        backend = self._backends.of(rpc.call)

        async def handle(request: Request) -> Response:
            message = await self._message(rpc, method, request)
            try:
                answer = await backend.unary(rpc.call, message)
            except errors.Stale as error:
                if "if-match" not in request.headers and "if-none-match" not in request.headers:
                    raise
                raise Refused(412, error.message, reason=error.reason, metadata=error.metadata) from error
            return _response(rpc, request, message, answer)

        return handle

    def _streaming(self, rpc: Rpc, method: Method) -> Handler:
        backend = self._backends.of(rpc.call)

        async def items(message: Message) -> AsyncGenerator[Item, None]:
            answers = backend.stream(rpc.call, message)
            try:
                async for answer in answers:
                    position = str(getattr(answer, rpc.resume[0])) if rpc.resume[0] else ""
                    yield position, line(answer)
            finally:
                await answers.aclose()

        async def handle(request: Request) -> Response:
            message = await self._message(rpc, method, request)
            last = request.headers.get("last-event-id", "")
            if rpc.resume[1] and last:
                setattr(message, rpc.resume[1], _number(last) + 1)
            return await self._streams.response(request, rpc.event, items(message))

        return handle

    async def _message(self, rpc: Rpc, method: Method, request: Request) -> Message:
        message = method.request()
        given = await self._take_body(rpc, message, request) if rpc.body else []
        for path, template in rpc.bind.items():
            _bind(message, path, _name(template, request.path_params))
        if rpc.etag:
            tag = _etag(request)
            if tag:
                _assign(message, rpc.etag, tag)
        fill(message, request.query_params.multi_items(), rpc.given)
        if rpc.mask and not getattr(message, rpc.mask).paths:
            getattr(message, rpc.mask).paths.extend(given)
        return message

    async def _take_body(self, rpc: Rpc, message: Message, request: Request) -> list[str]:
        """Fill `message` from the body; the names of the fields that can be changed among those it gave."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(
                415,
                "the body must be application/json",
                reason="UNSUPPORTED_MEDIA_TYPE",
                headers={"Accept": "application/json"},
            )
        async with self._bodies.received(request, CONTROL_MESSAGE) as body:
            value = parse(body)
        if not isinstance(value, dict):
            raise errors.Invalid("the body must be a JSON object", reason="INVALID_BODY")
        target = message if rpc.body == "*" else getattr(message, rpc.body)
        target.SetInParent()
        merge(value, target)
        known = {spelling: f.name for f in target.DESCRIPTOR.fields for spelling in (f.name, f.json_name)}
        return [known[key] for key in value if known[key] not in ("name", "etag")]


def merge(value: Mapping[str, Any], message: Message) -> None:
    """Fill `message` with protobuf JSON.

    Raises:
        Invalid: with reason INVALID_BODY.
    """
    try:
        json_format.ParseDict(dict(value), message, max_recursion_depth=64)
    except (json_format.ParseError, ValueError, TypeError, AttributeError, SystemError) as error:
        # The parser meets some wrong types, and lone surrogates, with Python's own errors.
        known = isinstance(error, json_format.ParseError)
        detail = str(error).partition("\n")[0][:500].rstrip(".") if known else "a value has the wrong type"
        raise errors.Invalid(f"the body does not fit: {detail}", reason="INVALID_BODY") from error


def line(message: Message) -> str:
    """`message` as one line of protobuf JSON with the field names of its proto, empty fields included."""
    found = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return json.dumps(found, separators=(",", ":"))


def _response(rpc: Rpc, request: Request, message: Message, answer: Any) -> Response:
    fields = answer.DESCRIPTOR.fields_by_name
    if not fields:
        return Response(status_code=204)
    headers = {"Cache-Control": "no-cache"}
    if "etag" in fields and answer.etag:
        headers["ETag"] = answer.etag
        if request.method in ("GET", "HEAD") and request.headers.get("if-none-match") == answer.etag:
            return Response(status_code=304, headers=headers)
    status = rpc.status
    if status == 201:
        if getattr(message, "validate_only", False):
            status = 200
        else:
            headers["Location"] = f"{ROOT}/{answer.name}"
    return Response(line(answer), status, headers, media_type="application/json")


def _name(template: str, parameters: Mapping[str, str]) -> str:
    for parameter, value in parameters.items():
        # In a resource name `-` stands for every one of a collection.
        if value != "-":
            names.check(value, parameter)
    return template.format_map(parameters)


def _bind(message: Message, path: str, value: str) -> None:
    owner, leaf = _owner(message, path)
    before = getattr(owner, leaf)
    if before and before != value:
        raise errors.invalid(path, f"must be {value}, as in the path, or left out")
    setattr(owner, leaf, value)


def _assign(message: Message, path: str, value: str) -> None:
    owner, leaf = _owner(message, path)
    setattr(owner, leaf, value)


def _owner(message: Message, path: str) -> tuple[Any, str]:
    *parents, leaf = path.split(".")
    owner: Any = message
    for parent in parents:
        owner = getattr(owner, parent)
    return owner, leaf


def _etag(request: Request) -> str:
    """The etag that a change depends on: that of `If-Match`, `*` for a resource that must be new, "" for none."""
    tag, absent = request.headers.get("if-match", ""), request.headers.get("if-none-match", "")
    if absent:
        if absent != "*" or tag:
            raise errors.invalid("If-None-Match", "must be * and alone: the resource must not exist")
        return "*"
    if tag and not (len(tag) > 2 and tag[0] == tag[-1] == '"' and '"' not in tag[1:-1]):
        raise errors.invalid("If-Match", "must be one strong etag")
    return tag


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise errors.invalid("Last-Event-ID", "is not one of this stream")
    return int(text)
