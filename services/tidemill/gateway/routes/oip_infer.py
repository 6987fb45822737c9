"""Routes of the Open Inference Protocol that ask models."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from tidemill import errors
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.gateway.backends import Backend
from tidemill.gateway.bodies import Bodies
from tidemill.gateway.metadata import MetadataCache
from tidemill.gateway.pieces import Buffer, Pieces
from tidemill.gateway.protocols import oip, wire
from tidemill.gateway.route import Route
from tidemill.gateway.routes import oip_documents as documents
from tidemill.gateway.routes.oip_models import SERVICE, both, named

HEAD = "Inference-Header-Content-Length"
T = TypeVar("T")


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
    return both("POST", "/infer", handlers.infer, documents.INFER)
