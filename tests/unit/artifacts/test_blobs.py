"""Blobs are read in ranges, verified when read whole, listed in order, and never handed out wrong."""

import os
from pathlib import Path

import pytest

from tests.support.artifacts import MIB, Raw, config, content, served, sha256
from tidemill import errors
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb


def stored(data: Path, digest: str) -> Path:
    """The file in which the store `directory` keeps a blob, opened for tampering."""
    path = data / "objects" / "blobs" / digest[:2] / digest
    path.chmod(0o600)
    return path


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("offset", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 6, 3 * MIB + 7])
async def test_ranges(tmp_path: Path, offset: int) -> None:
    data = content(3 * MIB + 7)
    async with served(config(tmp_path)) as raw:
        digest = (await raw.upload(data)).sha256
        for limit in (0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, 1 << 40):
            responses = await raw.read(digest, offset, limit)
            assert b"".join(each.data for each in responses) == data[offset:][: limit or None]
            at = offset
            for response in responses:
                assert response.offset == at
                assert 0 < len(response.data) <= MIB
                at += len(response.data)


async def test_ranges_that_are_not_there(tmp_path: Path) -> None:
    async with served(config(tmp_path)) as raw:
        digest = (await raw.upload(b"1234")).sha256
        with pytest.raises(errors.OutOfRange) as beyond:
            await raw.read(digest, 5)
        assert beyond.value.metadata["size"] == "4"
        for offset, limit in ((-1, 0), (0, -1)):
            with pytest.raises(errors.Invalid):
                await raw.read(digest, offset, limit)
        with pytest.raises(errors.NotFound):
            await raw.read(sha256(b"never sent"))


async def received(raw: Raw, digest: str) -> tuple[bytes, errors.TidemillError | None]:
    """What arrives of a whole read, and its error."""
    got, error = b"", None
    try:
        request = pb.ReadBlobRequest(name=f"blobs/{digest}")
        async for response in raw.caller.stream(raw.stub.ReadBlob, request, timeout=20):
            got += response.data
    except errors.TidemillError as raised:
        error = raised
    return got, error


@pytest.mark.parametrize("size", [1, MIB, 3 * MIB + 7])
async def test_a_flipped_bit_is_data_loss_and_never_a_complete_blob(tmp_path: Path, size: int) -> None:
    data = content(size)
    async with served(config(tmp_path)) as raw:
        digest = (await raw.upload(data)).sha256
        for at in {0, size // 2, size - 1}:
            flip(stored(tmp_path, digest), at)
            got, error = await received(raw, digest)
            assert isinstance(error, errors.DataLoss)
            assert error.metadata["sha256"] == digest
            assert len(got) < size
            flip(stored(tmp_path, digest), at)
        assert await received(raw, digest) == (data, None)


@pytest.mark.parametrize("size", [0, 1, MIB, 2 * MIB - 1])
async def test_a_truncated_blob_is_data_loss(tmp_path: Path, size: int) -> None:
    data = content(2 * MIB)
    async with served(config(tmp_path)) as raw:
        digest = (await raw.upload(data)).sha256
        os.truncate(stored(tmp_path, digest), size)
        got, error = await received(raw, digest)
        assert isinstance(error, errors.DataLoss)
        assert len(got) < len(data)


async def test_a_grown_blob_is_data_loss(tmp_path: Path) -> None:
    data = content(2 * MIB)
    async with served(config(tmp_path)) as raw:
        digest = (await raw.upload(data)).sha256
        os.truncate(stored(tmp_path, digest), 2 * MIB + 1)
        got, error = await received(raw, digest)
        assert isinstance(error, errors.DataLoss)
        assert len(got) <= len(data)


async def test_a_damaged_blob_is_mended_by_uploading_it_again(tmp_path: Path) -> None:
    data = content(MIB)
    async with served(config(tmp_path)) as raw:
        digest = (await raw.upload(data)).sha256
        flip(stored(tmp_path, digest), 5)
        with pytest.raises(errors.DataLoss):
            await raw.read(digest)
        assert (await raw.create(data)).state == pb.Upload.STATE_ACTIVE
        await raw.upload(data)
        assert await received(raw, digest) == (data, None)
        assert (await raw.create(data)).state == pb.Upload.STATE_COMPLETE


async def test_a_truncated_blob_is_mended_without_having_been_read(tmp_path: Path) -> None:
    data = content(MIB)
    async with served(config(tmp_path)) as raw:
        digest = (await raw.upload(data)).sha256
        os.truncate(stored(tmp_path, digest), 10)
        await raw.upload(data)
        assert await received(raw, digest) == (data, None)


async def test_files_are_private_and_named_by_digests_alone(tmp_path: Path) -> None:
    async with served(config(tmp_path / "data")) as raw:
        digest = (await raw.upload(b"bytes")).sha256
        path = stored(tmp_path / "data", digest)
        path.chmod(0o400)
        files = [each for each in (tmp_path / "data").rglob("*") if each.is_file()]
        assert {each.name for each in files} == {"FORMAT", "LOCK", digest}
        for each in (tmp_path / "data").rglob("*"):
            assert each.stat().st_mode & 0o077 == 0 or each.name == "FORMAT"


async def test_lists_are_paged_in_order(tmp_path: Path) -> None:
    async with served(config(tmp_path)) as raw:
        digests = sorted([(await raw.upload(content(10, seed))).sha256 for seed in range(7)])
        found, token, pages = [], "", 0
        while pages == 0 or token:
            page = await raw.call("ListBlobs", pb.ListBlobsRequest(page_size=3, page_token=token))
            found += [blob.sha256 for blob in page.blobs]
            token, pages = page.next_page_token, pages + 1
        assert (found, pages) == (digests, 3)
        with pytest.raises(errors.Invalid):
            await raw.call("ListBlobs", pb.ListBlobsRequest(page_token="nonsense"))
        with pytest.raises(errors.Invalid):
            await raw.call("ListBlobs", pb.ListBlobsRequest(page_size=-1))


async def test_a_deleted_blob_is_gone_and_can_come_back(tmp_path: Path) -> None:
    async with served(config(tmp_path)) as raw:
        blob = await raw.upload(b"bytes")
        await raw.call("DeleteBlob", pb.DeleteBlobRequest(name=blob.name))
        for method, request in (
            ("GetBlob", pb.GetBlobRequest(name=blob.name)),
            ("DeleteBlob", pb.DeleteBlobRequest(name=blob.name)),
        ):
            with pytest.raises(errors.NotFound):
                await raw.call(method, request)
        assert (await raw.upload(b"bytes")).sha256 == blob.sha256


async def test_stale_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    async with served(config(tmp_path)) as raw:
        await raw.upload(b"bytes")
    (tmp_path / "objects" / "temporary" / "half").write_bytes(b"half a blob")
    async with served(config(tmp_path)) as raw:
        assert list((tmp_path / "objects" / "temporary").iterdir()) == []
        assert (await raw.create(b"bytes")).state == pb.Upload.STATE_COMPLETE


async def test_a_folder_that_went_away_is_a_store_that_cannot_be_used(tmp_path: Path) -> None:
    async with served(config(tmp_path)) as raw:
        upload = await raw.create(b"bytes")
        await raw.send(upload.name, b"bytes")
        (tmp_path / "objects").rename(tmp_path / "elsewhere")
        for method, request in (
            ("FinishUpload", pb.FinishUploadRequest(name=upload.name)),
            ("GetBlob", pb.GetBlobRequest(name=f"blobs/{sha256(b'bytes')}")),
            ("ListBlobs", pb.ListBlobsRequest()),
            ("ListArtifacts", pb.ListArtifactsRequest()),
        ):
            with pytest.raises(errors.Unavailable):
                await raw.call(method, request)
        (tmp_path / "elsewhere").rename(tmp_path / "objects")
        blob = await raw.call("FinishUpload", pb.FinishUploadRequest(name=upload.name))
        assert blob.size == 5
