"""Blobs on their way to and from the artifact service, taken up where they broke."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from tidemill import errors
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb
from tidemill.clients.patience import Attempts, Patience, is_broken
from tidemill.clients.sources import Source
from tidemill.rpc.caller import Caller

FINISH_TIMEOUT = 600.0
"""Seconds that the service may take to verify and store an upload."""
_RESUMABLE = (
    "UPLOAD_BUSY",  # the service has not noticed yet that the connection broke
    "UPLOAD_TAKEN_OVER",
    "UPLOAD_GAP",  # the service lost what was not yet safe
    "UPLOAD_NOT_FOUND",  # given up meanwhile
)


class Transfers:
    """Uploads and reads of one client.

    Args:
        caller: makes the calls.
        stub: that of `tidemill.api.artifacts.v1.ArtifactService`.
        patience: how often a transfer that broke is taken up again.
    """

    def __init__(self, caller: Caller, stub: Any, patience: Patience) -> None:
        self._caller = caller
        self._stub = stub
        self._patience = patience

    async def upload(self, content: Source) -> pb.Blob:
        """The blob with these bytes; only sent if there is none yet."""
        attempts = Attempts(self._patience)
        upload: pb.Upload | None = None
        while True:
            try:
                upload = await self._state(upload, content)
                if upload.state != pb.Upload.STATE_COMPLETE and upload.offset < content.size:
                    await self._send(upload, content, attempts)
                blob = await self._finish(upload)
            except errors.TidemillError as error:
                if not is_broken(error) and error.reason not in _RESUMABLE:
                    raise
                await attempts.failed(error)
                continue
            if (blob.sha256, blob.size) != (content.sha256, content.size):
                raise errors.DataLoss("the service stored other bytes", reason="DIGEST_MISMATCH")
            return blob

    async def _state(self, upload: pb.Upload | None, content: Source) -> pb.Upload:
        """How far the upload is; a new one at first, and when it was given up meanwhile."""
        if upload is not None:
            try:
                return await self._get(upload)
            except errors.NotFound:
                pass
        request = pb.CreateUploadRequest(sha256=content.sha256, size=content.size)
        created: pb.Upload = await self._caller.unary(self._stub.CreateUpload, request)
        return created

    async def _get(self, upload: pb.Upload) -> pb.Upload:
        state: pb.Upload = await self._caller.unary(self._stub.GetUpload, pb.GetUploadRequest(name=upload.name))
        return state

    async def _send(self, upload: pb.Upload, content: Source, attempts: Attempts) -> None:
        failure: list[OSError] = []

        async def chunks() -> AsyncIterator[pb.WriteUploadRequest]:
            at, name = upload.offset, upload.name
            try:
                while data := await content.read(at):
                    yield pb.WriteUploadRequest(name=name, offset=at, data=data)
                    at, name = at + len(data), ""
            except OSError as error:
                failure.append(error)
                raise

        try:
            state: pb.Upload = await self._caller.upload(self._stub.WriteUpload, chunks())
        except asyncio.CancelledError:
            if failure:  # it cancelled the call
                raise failure[0] from None
            raise
        except errors.TidemillError:
            if await self._advanced(upload):
                attempts.progress()
            raise
        if state.offset < content.size:
            raise errors.DataLoss("the source became shorter while it was read", reason="SOURCE_CHANGED")

    async def _advanced(self, upload: pb.Upload) -> bool:
        try:
            return (await self._get(upload)).offset > upload.offset
        except errors.TidemillError:
            return False

    async def _finish(self, upload: pb.Upload) -> pb.Blob:
        request = pb.FinishUploadRequest(name=upload.name)
        blob: pb.Blob = await self._caller.unary(self._stub.FinishUpload, request, timeout=FINISH_TIMEOUT)
        return blob

    async def range(self, digest: str, at: int, end: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from `at` up to `end`, not verified."""
        attempts = Attempts(self._patience)
        while at < end:
            request = pb.ReadBlobRequest(name=f"blobs/{digest}", offset=at, limit=end - at)
            try:
                async with aclosing(self._caller.stream(self._stub.ReadBlob, request)) as responses:
                    async for response in responses:
                        if response.offset != at or len(response.data) > end - at:
                            raise errors.DataLoss("the service sent other bytes than it was asked for")
                        at += len(response.data)
                        attempts.progress()
                        yield response.data
                if at < end:
                    raise errors.Unavailable("the service ended a stream early", reason="STREAM_BROKEN")
            except errors.TidemillError as error:
                if not is_broken(error):
                    raise
                await attempts.failed(error)


async def verified(digest: str, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """`pieces`, the last of which comes only when all together have this digest.

    Raises:
        DataLoss: with reason BLOB_DAMAGED, when they have another.
    """
    found, held = hashlib.sha256(), b""
    async with aclosing(pieces):
        async for piece in pieces:
            await asyncio.to_thread(found.update, piece)
            if held:
                yield held
            held = piece
    if found.hexdigest() != digest:
        raise errors.DataLoss(f"blob {digest} arrived with another digest", reason="BLOB_DAMAGED")
    if held:
        yield held
