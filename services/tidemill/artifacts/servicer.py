"""The artifact service on the wire: convert, call, convert."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from google.protobuf.empty_pb2 import Empty
from opentelemetry import trace

from tidemill import errors
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb
from tidemill.artifacts import convert
from tidemill.artifacts.blobs import Blobs
from tidemill.artifacts.catalog import Catalog
from tidemill.artifacts.uploads import Uploads
from tidemill.rpc import paging
from tidemill.telemetry import attributes


class ArtifactServicer:
    """Answers `tidemill.api.artifacts.v1.ArtifactService`."""

    def __init__(self, uploads: Uploads, blobs: Blobs, catalog: Catalog) -> None:
        self._uploads = uploads
        self._blobs = blobs
        self._catalog = catalog

    async def CreateUpload(self, request: pb.CreateUploadRequest, context: Any) -> pb.Upload:
        """Starts an upload."""
        return convert.to_upload(await self._uploads.create(request.sha256, request.size))

    async def GetUpload(self, request: pb.GetUploadRequest, context: Any) -> pb.Upload:
        """Says how far an upload is."""
        return convert.to_upload(self._uploads.get(convert.upload_id(request.name)))

    async def WriteUpload(self, requests: AsyncIterator[pb.WriteUploadRequest], context: Any) -> pb.Upload:
        """Appends bytes to an upload."""
        first = await anext(aiter(requests), None)
        if first is None:
            raise errors.invalid("name", "the first message must name an upload")
        writer = self._uploads.write(convert.upload_id(first.name))
        try:
            await writer.append(first.offset, first.data)
            async for request in requests:
                if request.name not in ("", first.name):
                    raise errors.invalid("name", "must stay the same")
                await writer.append(request.offset, request.data)
        finally:
            upload = await writer.close()
        trace.get_current_span().set_attribute(attributes.BYTES, upload.offset)
        return convert.to_upload(upload)

    async def FinishUpload(self, request: pb.FinishUploadRequest, context: Any) -> pb.Blob:
        """Verifies an upload and makes its blob visible."""
        return convert.to_blob(await self._uploads.finish(convert.upload_id(request.name)))

    async def AbortUpload(self, request: pb.AbortUploadRequest, context: Any) -> Empty:
        """Gives an upload up."""
        await self._uploads.abort(convert.upload_id(request.name))
        return Empty()

    async def GetBlob(self, request: pb.GetBlobRequest, context: Any) -> pb.Blob:
        """Describes one blob."""
        return convert.to_blob(await self._blobs.get(convert.blob_digest(request.name)))

    async def ListBlobs(self, request: pb.ListBlobsRequest, context: Any) -> pb.ListBlobsResponse:
        """Lists blobs in order of digest."""
        size = paging.size(request.page_size)
        blobs = await self._blobs.page(paging.position(request.page_token), size)
        more = len(blobs) == size
        return pb.ListBlobsResponse(
            blobs=[convert.to_blob(blob) for blob in blobs],
            next_page_token=paging.token(blobs[-1].sha256) if more else "",
        )

    async def ReadBlob(self, request: pb.ReadBlobRequest, context: Any) -> AsyncIterator[pb.ReadBlobResponse]:
        """Sends the bytes of a blob or of a range of it."""
        at = request.offset
        reading = self._blobs.read(convert.blob_digest(request.name), request.offset, request.limit)
        async with aclosing(reading) as pieces:
            async for piece in pieces:
                yield pb.ReadBlobResponse(offset=at, data=piece)
                at += len(piece)
        trace.get_current_span().set_attribute(attributes.BYTES, at - request.offset)

    async def DeleteBlob(self, request: pb.DeleteBlobRequest, context: Any) -> Empty:
        """Deletes a blob."""
        await self._blobs.delete(convert.blob_digest(request.name))
        return Empty()

    async def CreateArtifact(self, request: pb.CreateArtifactRequest, context: Any) -> pb.Artifact:
        """Makes an artifact of blobs that exist."""
        wanted = request.artifact
        artifact = await self._catalog.create(
            wanted.kind, convert.from_files(wanted), dict(wanted.labels), request.reference
        )
        trace.get_current_span().set_attribute(attributes.ARTIFACT, artifact.digest)
        return convert.to_artifact(artifact)

    async def GetArtifact(self, request: pb.GetArtifactRequest, context: Any) -> pb.Artifact:
        """Reads one artifact."""
        return convert.to_artifact(await self._catalog.get(convert.artifact_digest(request.name)))

    async def ListArtifacts(self, request: pb.ListArtifactsRequest, context: Any) -> pb.ListArtifactsResponse:
        """Lists artifacts in order of digest."""
        size = paging.size(request.page_size)
        after = paging.position(request.page_token, request.kind)
        artifacts, last = await self._catalog.page(after, size, request.kind)
        return pb.ListArtifactsResponse(
            artifacts=[convert.to_artifact(artifact) for artifact in artifacts],
            next_page_token=paging.token(last, request.kind) if last else "",
        )

    async def DeleteArtifact(self, request: pb.DeleteArtifactRequest, context: Any) -> Empty:
        """Deletes an artifact and those of its blobs that no other lists."""
        await self._catalog.delete(convert.artifact_digest(request.name))
        return Empty()

    async def AddReference(self, request: pb.AddReferenceRequest, context: Any) -> pb.Artifact:
        """Records that something outside needs an artifact."""
        digest = convert.artifact_digest(request.name)
        return convert.to_artifact(await self._catalog.add_reference(digest, request.reference))

    async def RemoveReference(self, request: pb.RemoveReferenceRequest, context: Any) -> pb.Artifact:
        """Takes such a record back."""
        digest = convert.artifact_digest(request.name)
        return convert.to_artifact(await self._catalog.remove_reference(digest, request.reference))
