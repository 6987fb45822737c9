"""The bytes of blobs, in and out: passed on as they arrive, never held as a whole."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tidemill import errors, names
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb
from tidemill.gateway import openapi
from tidemill.gateway.backends import Backend
from tidemill.gateway.bodies import incoming
from tidemill.gateway.operations import ROOT
from tidemill.gateway.problems import Refused
from tidemill.gateway.ranges import requested, sent
from tidemill.gateway.route import Route
from tidemill.gateway.schemas import reference
from tidemill.gateway.transcode import line
from tidemill.rpc.options import CHUNK

_SERVICE = "ArtifactService"
_BYTES = {"application/octet-stream": {"type": "string", "format": "binary"}}


class Blobs:
    """Handlers for the bytes of blobs and uploads."""

    def __init__(self, artifacts: Backend) -> None:
        self._artifacts = artifacts

    async def put(self, request: Request) -> Response:
        """Upload a blob in one go; one that exists already is not stored again."""
        digest = names.check_digest(request.path_params["sha256"], "sha256")
        size = _length(request)
        if "content-range" in request.headers:
            raise errors.invalid("Content-Range", "is for uploads that are created under /api/v1/uploads")
        upload = await self._call("CreateUpload", pb.CreateUploadRequest(sha256=digest, size=size))
        if upload.state == pb.Upload.STATE_COMPLETE:
            async for _ in incoming(request):
                pass
            blob = await self._call("GetBlob", pb.GetBlobRequest(name=f"blobs/{digest}"))
            return Response(line(blob), media_type="application/json")
        try:
            await self._write(request, upload.name, 0)
            blob = await self._finish(upload.name)
        except BaseException:
            # Nobody else knows this upload's name.
            await self._call("AbortUpload", pb.AbortUploadRequest(name=upload.name), quietly=True)
            raise
        return Response(line(blob), 201, {"Location": f"{ROOT}/{blob.name}"}, media_type="application/json")

    async def write(self, request: Request) -> Response:
        """Append to an upload that was begun before."""
        name = f"uploads/{names.check(request.path_params['upload'], 'upload')}"
        offset = sent(request.headers.get("content-range", ""), _length(request))
        return Response(line(await self._write(request, name, offset)), media_type="application/json")

    async def get(self, request: Request) -> Response:
        """The bytes of a blob, or of the range that the request asks for."""
        digest = names.check_digest(request.path_params["sha256"], "sha256")
        blob = await self._call("GetBlob", pb.GetBlobRequest(name=f"blobs/{digest}"))
        etag = f'"{digest}"'
        headers = {
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=31536000, immutable",
            "Content-Disposition": f'attachment; filename="{digest}"',
            "ETag": etag,
        }
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        part = None
        if request.headers.get("if-range", etag) == etag:
            part = requested(request.headers.get("range", ""), blob.size)
        offset, length = part or (0, blob.size)
        headers["Content-Length"] = str(length)
        if part:
            headers["Content-Range"] = f"bytes {offset}-{offset + length - 1}/{blob.size}"
        status = 206 if part else 200
        if request.method == "HEAD" or length == 0:
            return Response(None, status, headers, media_type="application/octet-stream")
        wanted = pb.ReadBlobRequest(name=blob.name, offset=offset, limit=length)
        chunks = self._artifacts.stream(f"{_SERVICE}.ReadBlob", wanted)
        # Begun before the response is: what fails at once has a status of its own.
        first = await anext(chunks)
        return StreamingResponse(_bytes(first, chunks), status, headers, media_type="application/octet-stream")

    async def _write(self, request: Request, name: str, offset: int) -> Any:
        messages = _Messages(request, name, offset)
        try:
            return await self._artifacts.upload(f"{_SERVICE}.WriteUpload", messages.send())
        except asyncio.CancelledError:
            # A request stream that fails cancels its call: what it failed of is the error.
            if messages.error is None:
                raise
            raise messages.error from None

    async def _finish(self, name: str) -> Any:
        try:
            return await self._call("FinishUpload", pb.FinishUploadRequest(name=name))
        except errors.DataLoss as error:
            raise errors.Invalid(
                "the bytes do not have the SHA-256 and the size that were announced", reason="DIGEST_MISMATCH"
            ) from error

    async def _call(self, rpc: str, message: Any, *, quietly: bool = False) -> Any:
        try:
            return await self._artifacts.unary(f"{_SERVICE}.{rpc}", message)
        except errors.TidemillError:
            if not quietly:
                raise
            return None


async def _bytes(first: pb.ReadBlobResponse, rest: AsyncGenerator[pb.ReadBlobResponse, None]) -> AsyncIterator[bytes]:
    try:
        yield first.data
        async for chunk in rest:
            yield chunk.data
    finally:
        await rest.aclose()


class _Messages:
    """A body as messages of at most `CHUNK` bytes; at least one, so that the upload is named."""

    def __init__(self, request: Request, name: str, offset: int) -> None:
        self._request, self._name, self._offset = request, name, offset
        self.error: errors.TidemillError | None = None

    async def send(self) -> AsyncIterator[pb.WriteUploadRequest]:
        """The messages; what ends them too early is kept in `error` as well."""
        waiting = bytearray()
        try:
            async for piece in incoming(self._request):
                waiting += piece
                while len(waiting) >= CHUNK:
                    yield self._next(bytes(waiting[:CHUNK]))
                    del waiting[:CHUNK]
        except errors.TidemillError as error:
            self.error = error
            raise
        if waiting or self._name:
            yield self._next(bytes(waiting))

    def _next(self, data: bytes) -> pb.WriteUploadRequest:
        message = pb.WriteUploadRequest(name=self._name, offset=self._offset, data=data)
        self._name = ""
        self._offset += len(data)
        return message


def _length(request: Request) -> int:
    length = request.headers.get("content-length")
    if length is None:
        raise Refused(411, "the body needs a Content-Length", reason="LENGTH_REQUIRED")
    return int(length)


_BLOB, _UPLOAD = ({"application/json": reference(kind.DESCRIPTOR)} for kind in (pb.Blob, pb.Upload))
_PUT = {
    **openapi.described(
        "Blobs",
        "PutBlob",
        "Uploads a blob in one request. Its SHA-256 is that in the path, or nothing is kept: then the reason is "
        "DIGEST_MISMATCH. A blob that exists already is not stored again. For an upload that can be resumed, "
        "create one under `/api/v1/uploads`.",
    ),
    "requestBody": openapi.body(_BYTES),
    "responses": {
        "200": openapi.answer("The blob was there already.", _BLOB),
        "201": openapi.answer("The blob.", _BLOB),
        "default": openapi.PROBLEM,
    },
}
_WRITE = {
    **openapi.described(
        "Blobs",
        "WriteUpload",
        "Appends bytes to an upload. `Content-Range` says where they belong, the beginning without it; what the "
        "upload has already is skipped. The response says how far it is now. What arrived before a broken "
        "connection stays.",
    ),
    "parameters": [openapi.header("Content-Range", "Where the bytes belong, like `bytes 100-199/500`.")],
    "requestBody": openapi.body(_BYTES),
    "responses": {"200": openapi.answer("How far the upload is.", _UPLOAD), "default": openapi.PROBLEM},
}
_GET = {
    **openapi.described(
        "Blobs",
        "ReadBlob",
        "Sends the bytes of a blob, or of one range of them. A response that breaks off before its length is "
        "reached was found to be damaged in the store.",
    ),
    "parameters": [
        openapi.header("Range", "One range of bytes, like `bytes=100-199`."),
        openapi.header("If-None-Match", "The etag of a copy that the caller has: the SHA-256 in quotes."),
    ],
    "responses": {
        "200": openapi.answer("The bytes.", _BYTES),
        "206": openapi.answer("The range.", _BYTES),
        "304": openapi.answer("The caller has the bytes."),
        "default": openapi.PROBLEM,
    },
}


def routes(artifacts: Backend) -> list[Route]:
    """The routes of the bytes of blobs and uploads."""
    blobs = Blobs(artifacts)
    return [
        Route(verb="PUT", path=f"{ROOT}/blobs/{{sha256}}", handler=blobs.put, operation=_PUT, timed=False),
        Route(verb="GET", path=f"{ROOT}/blobs/{{sha256}}", handler=blobs.get, operation=_GET, timed=False),
        Route(verb="PUT", path=f"{ROOT}/uploads/{{upload}}", handler=blobs.write, operation=_WRITE, timed=False),
    ]
