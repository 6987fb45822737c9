"""What uploads may take, and what they may be called."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.artifacts import config, content, served, sha256
from tidemill import errors
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb


async def test_blobs_and_uploads_are_bounded(tmp_path: Path) -> None:
    async with served(config(tmp_path, max_blob_bytes=1000, max_uploads=2)) as raw:
        with pytest.raises(errors.Exhausted) as large:
            await raw.create(content(1001))
        assert (large.value.reason, large.value.metadata["limit"]) == ("BLOB_TOO_LARGE", "1000")
        one = await raw.create(content(1000))
        await raw.create(content(1000, 1))
        with pytest.raises(errors.Exhausted) as many:
            await raw.create(content(1000, 2))
        assert many.value.reason == "TOO_MANY_UPLOADS"
        assert many.value.retry_after is not None
        await raw.call("AbortUpload", pb.AbortUploadRequest(name=one.name))
        assert (await raw.upload(content(1000, 2))).size == 1000


async def test_uploads_leave_disk_space_free(tmp_path: Path) -> None:
    async with served(config(tmp_path, min_free_bytes=1 << 60)) as raw:
        with pytest.raises(errors.Exhausted) as full:
            await raw.create(b"x")
        assert full.value.reason == "DISK_FULL"


@pytest.mark.parametrize("digest", ["", "0" * 63, "A" * 64, "../" + "0" * 61, "0" * 64 + "\n"])
async def test_bad_digests_are_refused_everywhere(tmp_path: Path, digest: str) -> None:
    async with served(config(tmp_path)) as raw:
        requests: list[Any] = [
            pb.CreateUploadRequest(sha256=digest, size=1),
            pb.GetBlobRequest(name=f"blobs/{digest}"),
            pb.DeleteBlobRequest(name=f"blobs/{digest}"),
            pb.GetArtifactRequest(name=f"artifacts/{digest}"),
            pb.DeleteArtifactRequest(name=f"artifacts/{digest}"),
            pb.AddReferenceRequest(name=f"artifacts/{digest}", reference="jobs/a"),
            pb.RemoveReferenceRequest(name=f"artifacts/{digest}", reference="jobs/a"),
        ]
        for request in requests:
            with pytest.raises(errors.Invalid):
                await raw.call(type(request).__name__.removesuffix("Request"), request)
        with pytest.raises(errors.Invalid):
            await raw.read(digest)


@pytest.mark.parametrize("name", ["", "uploads", "uploads/", "uploads/..", "uploads/../objects", "/etc/passwd", "x/y"])
async def test_bad_upload_names_are_refused(tmp_path: Path, name: str) -> None:
    async with served(config(tmp_path)) as raw:
        for request in (
            pb.GetUploadRequest(name=name),
            pb.FinishUploadRequest(name=name),
            pb.AbortUploadRequest(name=name),
        ):
            with pytest.raises(errors.Invalid):
                await raw.call(type(request).__name__.removesuffix("Request"), request)
        with pytest.raises(errors.Invalid):
            await raw.write(name, (0, b"x"))


async def test_a_negative_size_is_refused(tmp_path: Path) -> None:
    async with served(config(tmp_path)) as raw:
        with pytest.raises(errors.Invalid):
            await raw.call("CreateUpload", pb.CreateUploadRequest(sha256=sha256(b""), size=-1))
