"""What uploads may take, and what they may be called."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.artifacts import MIB, config, content, served, sha256
from tests.support.clock import ManualClock
from tests.support.wait import until
from tidemill import errors
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb
from tidemill.artifacts.app import MAINTENANCE
from tidemill.artifacts.uploads import UNTOUCHED


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


async def test_announcements_without_a_byte_do_not_keep_others_out(tmp_path: Path) -> None:
    clock = ManualClock()
    async with served(config(tmp_path, max_uploads=2), clock=clock) as raw:
        started = await raw.create(content(1000))
        await raw.write(started.name, (0, content(1000)[:10]))
        first = await raw.create(b"")
        with pytest.raises(errors.Exhausted) as many:
            await raw.create(content(10))
        assert many.value.reason == "TOO_MANY_UPLOADS"
        clock.jump(UNTOUCHED + 1)
        assert (await raw.upload(content(10))).size == 10
        with pytest.raises(errors.NotFound):
            await raw.call("GetUpload", pb.GetUploadRequest(name=first.name))
        assert (await raw.call("GetUpload", pb.GetUploadRequest(name=started.name))).offset == 10


async def test_an_upload_without_a_byte_is_soon_given_up(tmp_path: Path) -> None:
    clock = ManualClock()
    async with served(config(tmp_path), clock=clock) as raw:
        silent, empty, started = [await raw.create(content(1000, seed)) for seed in range(3)]
        assert silent.expire_time.seconds - clock.now() == pytest.approx(300, abs=1)
        await raw.write(started.name, (0, content(1000, 2)[:10]))
        await clock.advance(200)
        await raw.write(empty.name, (0, b""))

        async def gone() -> bool:
            await clock.advance(MAINTENANCE)
            return len(list((tmp_path / "uploads").glob("*.json"))) == 1

        await until(gone)
        assert clock.monotonic() < 1000
        for upload in (silent, empty):
            with pytest.raises(errors.NotFound):
                await raw.call("GetUpload", pb.GetUploadRequest(name=upload.name))
        assert (await raw.call("GetUpload", pb.GetUploadRequest(name=started.name))).offset == 10


async def test_announced_sizes_reserve_no_disk_space(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    async with served(config(tmp_path, max_blob_bytes=1 << 60)) as raw:
        for seed in range(3):
            request = pb.CreateUploadRequest(sha256=sha256(content(1, seed)), size=free * 2 // 3)
            await raw.call("CreateUpload", request)
        assert (await raw.upload(content(1000))).size == 1000
        with pytest.raises(errors.Exhausted) as full:
            await raw.call("CreateUpload", pb.CreateUploadRequest(sha256=sha256(b"x"), size=2 * free))
        assert full.value.reason == "DISK_FULL"


async def test_bytes_that_would_fill_the_disk_are_refused_when_they_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = content(1000)
    async with served(config(tmp_path, min_free_bytes=100)) as raw:
        upload = await raw.create(data)
        await raw.write(upload.name, (0, data[:400]))
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=400))
        await raw.write(upload.name, (0, data[:400]))
        with pytest.raises(errors.Exhausted) as full:
            await raw.write(upload.name, (400, data[400:500]), (500, data[500:]))
        assert full.value.reason == "DISK_FULL"
        monkeypatch.undo()
        assert (await raw.call("GetUpload", pb.GetUploadRequest(name=upload.name))).offset == 500
        await raw.write(upload.name, (500, data[500:]))
        await raw.call("FinishUpload", pb.FinishUploadRequest(name=upload.name))


async def test_a_chunk_that_is_too_large_is_told_so(tmp_path: Path) -> None:
    async with served(config(tmp_path)) as raw:
        upload = await raw.create(content(2 * MIB))
        with pytest.raises(errors.Invalid, match=f"data: must have at most {MIB} bytes, not {MIB + 1}"):
            await raw.write(upload.name, (0, content(MIB + 1)))
        with pytest.raises(errors.Invalid, match="offset: must not be negative"):
            await raw.write(upload.name, (-1, b"x"))


async def test_a_known_digest_has_one_size(tmp_path: Path) -> None:
    data = content(1000)
    async with served(config(tmp_path)) as raw:
        await raw.upload(data)
        with pytest.raises(errors.Invalid, match="has 1000 bytes, not 999"):
            await raw.call("CreateUpload", pb.CreateUploadRequest(sha256=sha256(data), size=999))


@pytest.mark.parametrize("kind", ["../", "a b", "x" * 129])
async def test_artifacts_of_an_impossible_kind_cannot_be_listed(tmp_path: Path, kind: str) -> None:
    async with served(config(tmp_path)) as raw:
        with pytest.raises(errors.Invalid, match="kind"):
            await raw.call("ListArtifacts", pb.ListArtifactsRequest(kind=kind))
