"""Blobs and artifacts from Python: upload, download, make, refer to, list and delete them."""

import asyncio
import os
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from opentelemetry import trace

from tidemill import errors, names
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb
from tidemill.api.artifacts.v1 import artifacts_pb2_grpc as pg
from tidemill.clients.patience import Attempts, Patience, is_broken
from tidemill.clients.sources import Content, Source
from tidemill.clients.transfers import Transfers, verified
from tidemill.rpc.caller import DEFAULT_TIMEOUT, Caller

MAX_DOWNLOAD = 256 << 20
"""Largest blob that `download` holds in memory unless told otherwise, in bytes."""
PARALLEL_UPLOADS = 4
_SERVICE = pb.DESCRIPTOR.services_by_name["ArtifactService"]


class ArtifactsClient:
    """Calls the artifact service; errors are those of `tidemill.errors`.

    Bytes are verified at both ends. Transfers that break are taken up where they broke. Artifacts are named by their
    digest, or by the resource name `artifacts/{digest}`.

    Args:
        address: `host:port` of the artifact service.
        tracer: makes client spans inside of a recorded span.
        timeout: default seconds of a call that does not transfer blobs.
        patience: how often a transfer that broke is taken up again.
    """

    def __init__(
        self,
        address: str,
        *,
        tracer: trace.Tracer | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        patience: Patience | None = None,
    ) -> None:
        self._caller = Caller(address, [_SERVICE], tracer=tracer, timeout=timeout)
        self._stub: Any = pg.ArtifactServiceStub(self._caller.channel)
        self._patience = patience or Patience()
        self._transfers = Transfers(self._caller, self._stub, self._patience)

    async def upload(self, source: Content) -> pb.Blob:
        """The blob with the bytes of `source`; only sent if there is none yet.

        Args:
            source: bytes, the path of a file, or an open binary file, read from its position on.

        Raises:
            DataLoss: the source changed while it was read, or bytes were damaged on the way.
            Exhausted: the blob is too large, or the service has no room.
            Unavailable: the service did not come back in time.
        """
        async with Source(source) as content:
            return await self._transfers.upload(content)

    async def read(self, digest: str, offset: int = 0, limit: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob from `offset` on, at most `limit` of them (0 = all), in pieces of at most 1 MiB.

        Whoever reads the whole blob to the end has the right bytes: the last piece comes after all were verified.

        Raises:
            NotFound: there is no such blob.
            OutOfRange: `offset` lies beyond the end.
            DataLoss: the stored bytes are damaged.
        """
        if offset < 0 or limit < 0:
            raise errors.invalid("offset" if offset < 0 else "limit", "must not be negative")
        size = (await self.get_blob(digest)).size
        if offset > size:
            raise errors.OutOfRange(f"offset {offset} lies beyond the end at {size}")
        end = min(size, offset + limit) if limit else size
        pieces = self._transfers.range(digest, offset, end)
        async with aclosing(verified(digest, pieces) if (offset, end) == (0, size) else pieces) as checked:
            async for piece in checked:
                yield piece

    async def download(self, digest: str, *, max_size: int = MAX_DOWNLOAD) -> bytes:
        """All bytes of a blob of at most `max_size` bytes, verified.

        Raises:
            Exhausted: with reason BLOB_TOO_LARGE: use `download_to`.
            NotFound: there is no such blob.
            DataLoss: the stored bytes are damaged.
        """
        size = (await self.get_blob(digest)).size
        if size > max_size:
            raise errors.Exhausted(f"the blob has {size} bytes, more than {max_size}", reason="BLOB_TOO_LARGE")
        async with aclosing(self.read(digest)) as pieces:
            return b"".join([piece async for piece in pieces])

    async def download_to(self, digest: str, path: Path) -> None:
        """Write the bytes of a blob to the file `path`, which appears, or is replaced, only when they are verified.

        Raises:
            NotFound: there is no such blob.
            DataLoss: the stored bytes are damaged.
        """
        descriptor, name = await asyncio.to_thread(
            tempfile.mkstemp, dir=path.parent, prefix=f".{path.name[:64]}.", suffix=".part"
        )
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                async with aclosing(self.read(digest)) as pieces:
                    async for piece in pieces:
                        await asyncio.to_thread(file.write, piece)
                await asyncio.to_thread(file.flush)
                await asyncio.to_thread(os.fsync, file.fileno())
            await asyncio.to_thread(temporary.replace, path)
        finally:
            await asyncio.to_thread(temporary.unlink, missing_ok=True)

    async def download_artifact(self, digest: str, folder: Path) -> dict[str, Path]:
        """Write the files of an artifact below `folder`, which is made; their paths by their names in the artifact.

        Raises:
            NotFound: there is no such artifact.
            DataLoss: stored bytes are damaged.
        """
        artifact = await self.get_artifact(digest)
        found = {file.path: folder / names.check_path(file.path) for file in artifact.files}
        for file in artifact.files:
            await asyncio.to_thread(found[file.path].parent.mkdir, parents=True, exist_ok=True)
            await self.download_to(file.sha256, found[file.path])
        return found

    async def create_artifact(
        self,
        kind: str,
        files: Mapping[str, bytes | Path | str],
        *,
        labels: Mapping[str, str] | None = None,
        reference: str = "",
        media_types: Mapping[str, str] | None = None,
    ) -> pb.Artifact:
        """The artifact with this content; what is not there yet is uploaded.

        Args:
            kind: `model`, `checkpoint`, `dataset`, `logs` or another valid name.
            files: path in the artifact -> its bytes, the local file that holds them, or the digest of a blob.
            labels: free key-value pairs, part of the content.
            reference: a first reference, which protects the artifact from deletion; "" for none.
            media_types: path -> media type, for files that are not just bytes.

        Raises:
            Invalid: a name, path or label breaks a rule.
            FailedPrecondition: with reason BLOB_MISSING, when a digest names no blob.
        """
        given = {path: names.check_digest(content) for path, content in files.items() if isinstance(content, str)}
        local = {path: content for path, content in files.items() if not isinstance(content, str)}
        types = media_types or {}
        attempts = Attempts(self._patience)
        while True:
            digests = {**given, **await self._upload_all(local)}
            listed = [
                pb.File(path=path, sha256=sha256, media_type=types.get(path, "")) for path, sha256 in digests.items()
            ]
            wanted = pb.Artifact(kind=kind, files=listed, labels=labels)
            request = pb.CreateArtifactRequest(artifact=wanted, reference=reference)
            try:
                artifact: pb.Artifact = await self._caller.unary(self._stub.CreateArtifact, request)
            except errors.TidemillError as error:
                # The same content gives the same artifact: repeating is safe. A blob may have been deleted, with
                # another artifact, since it was uploaded here.
                gone = error.reason == "BLOB_MISSING" and error.metadata.get("sha256") not in given.values()
                if not gone and not is_broken(error):
                    raise
                await attempts.failed(error)
                continue
            if {file.path: file.sha256 for file in artifact.files} != digests:
                raise errors.DataLoss("the service made another artifact", reason="DIGEST_MISMATCH")
            return artifact

    async def _upload_all(self, contents: Mapping[str, bytes | Path]) -> dict[str, str]:
        turns = asyncio.Semaphore(PARALLEL_UPLOADS)

        async def one(content: bytes | Path) -> str:
            async with turns:
                return (await self.upload(content)).sha256

        try:
            async with asyncio.TaskGroup() as group:
                tasks = {path: group.create_task(one(content)) for path, content in contents.items()}
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        return {path: task.result() for path, task in tasks.items()}

    async def get_artifact(self, digest: str) -> pb.Artifact:
        """One artifact. Raises NotFound."""
        request = pb.GetArtifactRequest(name=_artifact_name(digest))
        artifact: pb.Artifact = await self._caller.unary(self._stub.GetArtifact, request)
        return artifact

    async def list_artifacts(self, *, kind: str = "", page_size: int = 0) -> AsyncGenerator[pb.Artifact, None]:
        """All artifacts, or those of one kind, in order of digest."""
        request = pb.ListArtifactsRequest(page_size=page_size, kind=kind)
        while True:
            page = await self._caller.unary(self._stub.ListArtifacts, request)
            for artifact in page.artifacts:
                yield artifact
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def delete_artifact(self, digest: str) -> None:
        """Delete an artifact and those of its blobs that no other lists.

        Raises:
            NotFound: there is no such artifact.
            FailedPrecondition: with reason ARTIFACT_REFERENCED.
        """
        request = pb.DeleteArtifactRequest(name=_artifact_name(digest))
        await self._caller.unary(self._stub.DeleteArtifact, request)

    async def add_reference(self, digest: str, reference: str) -> pb.Artifact:
        """Record that `reference`, a resource name, needs the artifact. Repeating it changes nothing."""
        request = pb.AddReferenceRequest(name=_artifact_name(digest), reference=reference)
        artifact: pb.Artifact = await self._caller.unary(self._stub.AddReference, request)
        return artifact

    async def remove_reference(self, digest: str, reference: str) -> pb.Artifact:
        """Take a reference back. Repeating it changes nothing."""
        request = pb.RemoveReferenceRequest(name=_artifact_name(digest), reference=reference)
        artifact: pb.Artifact = await self._caller.unary(self._stub.RemoveReference, request)
        return artifact

    async def get_blob(self, digest: str) -> pb.Blob:
        """Describe one blob. Raises NotFound."""
        blob: pb.Blob = await self._caller.unary(self._stub.GetBlob, pb.GetBlobRequest(name=f"blobs/{digest}"))
        return blob

    async def list_blobs(self, *, page_size: int = 0) -> AsyncGenerator[pb.Blob, None]:
        """All blobs, in order of digest."""
        request = pb.ListBlobsRequest(page_size=page_size)
        while True:
            page = await self._caller.unary(self._stub.ListBlobs, request)
            for blob in page.blobs:
                yield blob
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    async def delete_blob(self, digest: str) -> None:
        """Delete a blob that no artifact lists.

        Raises:
            NotFound: there is no such blob.
            FailedPrecondition: with reason BLOB_IN_USE.
        """
        await self._caller.unary(self._stub.DeleteBlob, pb.DeleteBlobRequest(name=f"blobs/{digest}"))

    async def ready(self, timeout: float) -> None:
        """Return when the service accepts connections. Raises Unavailable after `timeout` seconds."""
        await self._caller.ready(timeout)

    async def close(self) -> None:
        """Close the connection."""
        await self._caller.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def _artifact_name(digest: str) -> str:
    return f"artifacts/{digest.removeprefix('artifacts/')}"
