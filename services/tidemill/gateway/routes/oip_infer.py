"""Routes of the Open Inference Protocol that ask models."""

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.backends import Backend
from tidemill.gateway.bodies import Bodies
from tidemill.gateway.metadata import MetadataCache
from tidemill.gateway.observe import Exchange
from tidemill.gateway.pieces import Buffer, Pieces
from tidemill.gateway.protocols import generate, oip, wire
from tidemill.gateway.route import Route
from tidemill.gateway.routes import oip_documents as documents
from tidemill.gateway.routes.oip_models import SERVICE, both, named
from tidemill.gateway.streams import Item, plain

HEAD = "Inference-Header-Content-Length"
_REAL_ERRORS = (("triton_grpc_error", "true"),)
"""Header that makes an error end a stream with its own code."""
_OF_THE_MODEL = frozenset({errors.Code.INTERNAL, errors.Code.UNKNOWN, errors.Code.DATA_LOSS})
"""Codes of errors that happen after a request was found good."""
T = TypeVar("T")
Render: TypeAlias = Callable[[pb.ModelInferResponse, Sequence[Buffer]], str]
"""Makes JSON of an answer and its raw contents."""
Begun: TypeAlias = tuple[Item | None, AsyncGenerator[Item, None]]
"""The first answer, None when there is none, and the others."""


class Infer:
    """Handlers of what asks models."""

    def __init__(self, inference: Backend, bodies: Bodies, metadata: MetadataCache) -> None:
        self._inference = inference
        self._bodies = bodies
        self._metadata = metadata

    async def infer(self, request: Request) -> Response:
        """Asks a model."""
        model, version = named(request)
        head = _head(request)
        async with self._bodies.received(request) as body:
            if head == 0:
                answer, binary = await self._raw(body, model, version)
            else:
                parsed = oip.parse(body, head, model, version)
                binary, message = parsed.binary, wire.serialize(parsed.request, parsed.tensors)
                # From here on the tensors are in the message alone.
                del parsed, body
                answer = await self._inference.serialized(f"{SERVICE}.ModelInfer", message)
                del message
        parts, length = oip.render(*wire.split(answer), binary)
        if length is None:
            return Pieces(parts, media_type="application/json")
        return Pieces(parts, headers={HEAD: str(length)}, media_type="application/octet-stream")

    async def _raw(self, body: Buffer, model: str, version: str) -> tuple[bytes, oip.Binary]:
        """The answer to a body that is the only input's data."""

        async def ask(metadata: pb.ModelMetadataResponse) -> tuple[bytes, oip.Binary]:
            made = oip.raw_request(body, model, version, metadata)
            message = wire.serialize(made.request, made.tensors)
            return await self._inference.serialized(f"{SERVICE}.ModelInfer", message), made.binary

        return await described(self._metadata, model, version, ask)

    async def generate(self, request: Request) -> Response:
        """Asks a model with a flat object, for one answer."""
        model, version = named(request)
        given = await self._given(request)

        async def ask(metadata: pb.ModelMetadataResponse) -> str:
            message = _message(given, model, version, metadata)
            try:
                answer = await self._inference.serialized(f"{SERVICE}.ModelInfer", message)
            except errors.Unimplemented:  # perhaps a decoupled model, which may still give one answer
                return await self._only(message)
            return generate.render(*wire.split(answer))

        return Response(await described(self._metadata, model, version, ask), media_type="application/json")

    async def _only(self, message: bytes) -> str:
        found = [text async for _, text in _limited(self._answers(message, generate.render), 2)]
        if len(found) != 1:
            raise errors.FailedPrecondition(generate.MANY, reason="NOT_ONE_RESPONSE")
        return found[0]

    async def generate_stream(self, request: Request) -> Response:
        """Asks a model with a flat object, for any number of answers."""
        model, version = named(request)
        given = await self._given(request)

        async def ask(metadata: pb.ModelMetadataResponse) -> Begun:
            return await _begun(self._answers(_message(given, model, version, metadata), generate.render))

        return await _events(request, described(self._metadata, model, version, ask))

    async def infer_stream(self, request: Request) -> Response:
        """Asks a model as `infer` does, for any number of answers, each of which is all JSON."""
        model, version = named(request)
        head = _head(request)
        async with self._bodies.received(request) as body:
            parsed = oip.parse(body, head, model, version)
            message = wire.serialize(parsed.request, parsed.tensors)
            del parsed, body
        return await _events(request, _begun(self._answers(message, _whole)))

    async def _given(self, request: Request) -> Mapping[str, Any]:
        async with self._bodies.received(request) as body:
            return generate.parse(body)

    async def _answers(self, message: bytes, render: Render) -> AsyncGenerator[Item, None]:
        """The responses to one request, as JSON. Closing the iterator cancels the call."""
        responses = self._inference.converse(f"{SERVICE}.ModelStreamInfer", _one(message), _REAL_ERRORS)
        try:
            async for data in responses:
                found = pb.ModelStreamInferResponse.FromString(data)
                if found.error_message:
                    raise errors.Internal(found.error_message, reason="MODEL_FAILED")
                if not generate.is_empty(found.infer_response):
                    yield "", render(found.infer_response, found.infer_response.raw_output_contents)
        finally:
            await responses.aclose()


async def _begun(answers: AsyncGenerator[Item, None]) -> Begun:
    """The answers, once there is a first one, or none. Raises what comes in its place."""
    try:
        return await anext(answers, None), answers
    except BaseException:
        await answers.aclose()
        raise


async def _events(request: Request, begun: Awaitable[Begun]) -> Response:
    """Answers as events."""
    exchange: Exchange = request.scope["exchange"]
    try:
        first, rest = await begun
    except errors.TidemillError as error:
        if error.code not in _OF_THE_MODEL:
            raise
        # The model has begun: what it says comes as an event, and the status is that of the first one.
        return plain(exchange, _failed(error), error_text, status=500)
    return plain(exchange, _joined(first, rest), error_text)


def _whole(response: pb.ModelInferResponse, tensors: Sequence[Buffer]) -> str:
    """An answer as `infer` gives it, all of it JSON."""
    parts, _ = oip.render(response, tensors, oip.Binary({}, False))
    return bytes(parts[0]).decode()


async def _one(message: bytes) -> AsyncGenerator[bytes, None]:
    yield message


async def _failed(error: errors.TidemillError) -> AsyncGenerator[Item, None]:
    raise error
    yield


async def _joined(first: Item | None, rest: AsyncGenerator[Item, None]) -> AsyncGenerator[Item, None]:
    try:
        if first is not None:
            yield first
        async for item in rest:
            yield item
    finally:
        await rest.aclose()


async def _limited(items: AsyncGenerator[Item, None], most: int) -> AsyncGenerator[Item, None]:
    """At most so many items; the rest is not waited for."""
    try:
        async for item in items:
            yield item
            most -= 1
            if not most:
                return
    finally:
        await items.aclose()


def _message(given: Mapping[str, Any], model: str, version: str, metadata: pb.ModelMetadataResponse) -> bytes:
    made = generate.request(given, model, version, metadata)
    return wire.serialize(made.request, made.tensors)


def error_text(error: errors.TidemillError) -> str:
    """An error in the words of the protocol, as JSON."""
    return json.dumps({"error": error.message}, separators=(",", ":"))


async def described(
    cache: MetadataCache, model: str, version: str, ask: Callable[[pb.ModelMetadataResponse], Awaitable[T]]
) -> T:
    """What `ask` makes of the metadata of a model; it is asked again with new metadata when remembered one did not fit.

    Raises:
        TidemillError: what the service, or `ask`, raises.
    """
    metadata, remembered = await cache.get(model, version)
    try:
        return await ask(metadata)
    except (errors.Invalid, errors.NotFound):
        # Perhaps another version serves now, that takes something else.
        cache.forget(model, version)
        if not remembered:
            raise
    metadata, _ = await cache.get(model, version)
    return await ask(metadata)


def _head(request: Request) -> int | None:
    text = request.headers.get(HEAD)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise errors.invalid(HEAD, "must be a number of bytes")
    return int(text)


def routes(inference: Backend, bodies: Bodies, metadata: MetadataCache) -> list[Route]:
    """What asks models under `/v2`."""
    handlers = Infer(inference, bodies, metadata)
    return [
        *both("POST", "/infer", handlers.infer, documents.INFER),
        *both("POST", "/infer_stream", handlers.infer_stream, documents.INFER_STREAM, timed=False),
        *both("POST", "/generate", handlers.generate, documents.GENERATE),
        *both("POST", "/generate_stream", handlers.generate_stream, documents.GENERATE_STREAM, timed=False),
    ]
