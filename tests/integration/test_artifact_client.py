"""The client of the artifact service: verified at both ends, and taken up again where a connection broke."""

import asyncio
import io
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.support.artifacts import MIB, Raw, config, content, served, sha256
from tests.support.proxy import TcpProxy
from tests.support.wait import until
from tidemill import errors
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb
from tidemill.artifacts.app import build
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.patience import Patience
from tidemill.clients.sources import Content


@asynccontextmanager
async def client_of(data: Path, **settings: Any) -> AsyncIterator[tuple[ArtifactsClient, Raw]]:
    """A client of a service with these settings, and the service's raw calls."""
    async with served(config(data, **settings)) as raw, ArtifactsClient(raw.caller.address) as client:
        yield client, raw


def bytes_of(data: bytes, _: Path) -> bytes:
    return data


def path_of(data: bytes, folder: Path) -> Path:
    path = folder / "source"
    path.write_bytes(data)
    return path


def file_of(data: bytes, folder: Path) -> BinaryIO:
    file = io.BytesIO(b"not this part" + data)
    file.seek(len(b"not this part"))
    return file


def pipe_of(data: bytes, folder: Path) -> BinaryIO:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

        def seek(self, *where: int) -> int:
            raise io.UnsupportedOperation("seek")

    return Pipe(data)


@pytest.mark.parametrize("make", [bytes_of, path_of, file_of, pipe_of])
@pytest.mark.parametrize("size", [0, 1, MIB, 2 * MIB + 3])
async def test_what_was_uploaded_is_downloaded(tmp_path: Path, make: Callable[..., Any], size: int) -> None:
    data = content(size)
    async with client_of(tmp_path / "data") as (client, _):
        source = make(data, tmp_path)
        blob = await client.upload(source)
        assert (blob.sha256, blob.size) == (sha256(data), size)
        assert await client.download(blob.sha256) == data
        await client.download_to(blob.sha256, tmp_path / "target")
        assert (await asyncio.to_thread((tmp_path / "target").read_bytes)) == data
        if isinstance(source, io.BytesIO):
            assert not source.closed
        assert sorted(os.listdir(tmp_path)) == sorted({"data", "target", *(["source"] if make is path_of else [])})


async def test_ranges_are_read_as_asked(tmp_path: Path) -> None:
    data = content(2 * MIB + 10)
    async with client_of(tmp_path) as (client, _):
        digest = (await client.upload(data)).sha256
        for offset, limit in ((0, 5), (MIB - 1, 2), (MIB, 0), (2 * MIB + 10, 0), (0, len(data)), (5, 1 << 40)):
            async with aclosing(client.read(digest, offset, limit)) as pieces:
                found = [piece async for piece in pieces]
            assert b"".join(found) == data[offset:][: limit or None]
        with pytest.raises(errors.OutOfRange):
            await anext(client.read(digest, len(data) + 1))
        with pytest.raises(errors.Invalid):
            await anext(client.read(digest, -1))


async def test_downloads_into_memory_are_bounded(tmp_path: Path) -> None:
    async with client_of(tmp_path) as (client, _):
        digest = (await client.upload(content(100))).sha256
        with pytest.raises(errors.Exhausted) as large:
            await client.download(digest, max_size=99)
        assert large.value.reason == "BLOB_TOO_LARGE"


async def test_a_damaged_blob_reaches_no_file(tmp_path: Path) -> None:
    data = content(2 * MIB + 1)
    async with client_of(tmp_path / "data") as (client, _):
        digest = (await client.upload(data)).sha256
        path = tmp_path / "data" / "objects" / "blobs" / digest[:2] / digest
        await asyncio.to_thread(damage, path)
        target = tmp_path / "target"
        await asyncio.to_thread(target.write_bytes, b"what was here")
        with pytest.raises(errors.DataLoss):
            await client.download_to(digest, target)
        assert await asyncio.to_thread(target.read_bytes) == b"what was here"
        assert sorted(os.listdir(tmp_path)) == ["data", "target"]
        with pytest.raises(errors.DataLoss):
            await client.download(digest)


def damage(path: Path) -> None:
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(MIB + 7)
        file.write(b"?")


async def test_a_source_that_changes_while_it_is_sent_is_data_loss(tmp_path: Path) -> None:
    class Changing(io.BytesIO):
        """Says other bytes from the second reading on."""

        passes = 0

        def seek(self, offset: int, whence: int = 0) -> int:
            if offset == 0:
                self.passes += 1
                self.getbuffer()[-1] ^= 1
            return super().seek(offset, whence)

    async with client_of(tmp_path) as (client, _):
        with pytest.raises(errors.DataLoss):
            await client.upload(Changing(content(MIB)))
        assert [blob async for blob in client.list_blobs()] == []


async def test_a_source_that_cannot_be_read_is_the_callers_own_error(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        """Fails when it is read for the second time."""

        def seek(self, offset: int, whence: int = 0) -> int:
            raise OSError("the disk is broken")

    async with client_of(tmp_path) as (client, _):
        with pytest.raises(OSError, match="broken"):
            await client.upload(Broken(content(10)))
        with pytest.raises(FileNotFoundError):
            await client.upload(tmp_path / "nothing")


async def test_artifacts_from_bytes_files_and_digests(tmp_path: Path) -> None:
    async with client_of(tmp_path / "data") as (client, _):
        known = (await client.upload(b"known")).sha256
        artifact = await client.create_artifact(
            "model",
            {"m/a.bin": b"bytes", "m/b.json": path_of(b"{}", tmp_path), "c": known},
            labels={"step": "7"},
            reference="jobs/j1",
            media_types={"m/b.json": "application/json"},
        )
        assert [(file.path, file.size, file.media_type) for file in artifact.files] == [
            ("c", 5, "application/octet-stream"),
            ("m/a.bin", 5, "application/octet-stream"),
            ("m/b.json", 2, "application/json"),
        ]
        assert (artifact.kind, artifact.size, dict(artifact.labels)) == ("model", 12, {"step": "7"})
        assert list(artifact.references) == ["jobs/j1"]
        assert await client.get_artifact(artifact.digest) == artifact
        assert await client.get_artifact(artifact.name) == artifact
        paths = await client.download_artifact(artifact.digest, tmp_path / "out")
        assert {name: path.read_bytes() for name, path in paths.items()} == {
            "m/a.bin": b"bytes",
            "m/b.json": b"{}",
            "c": b"known",
        }
        assert [each.digest async for each in client.list_artifacts(kind="model", page_size=1)] == [artifact.digest]
        assert [each async for each in client.list_artifacts(kind="logs")] == []
        assert len([blob async for blob in client.list_blobs(page_size=2)]) == 3
        assert list((await client.add_reference(artifact.digest, "jobs/j2")).references) == ["jobs/j1", "jobs/j2"]
        with pytest.raises(errors.FailedPrecondition):
            await client.delete_artifact(artifact.digest)
        for reference in ("jobs/j1", "jobs/j2"):
            await client.remove_reference(artifact.name, reference)
        with pytest.raises(errors.FailedPrecondition):
            await client.delete_blob(known)
        await client.delete_artifact(artifact.digest)
        assert [blob async for blob in client.list_blobs()] == []


async def test_an_artifact_needs_its_blobs(tmp_path: Path) -> None:
    async with client_of(tmp_path) as (client, _):
        with pytest.raises(errors.FailedPrecondition) as missing:
            await client.create_artifact("model", {"a": b"here", "b": sha256(b"elsewhere")})
        assert missing.value.metadata["sha256"] == sha256(b"elsewhere")
        with pytest.raises(errors.Invalid):
            await client.create_artifact("model", {"../a": b"here"})
        with pytest.raises(errors.Invalid):
            await client.create_artifact("model", {"a": "no digest"})


class Rejoining:
    """A client behind a proxy, and what the service counted."""

    def __init__(self, client: ArtifactsClient, proxy: TcpProxy, raw: Raw) -> None:
        self.client, self.proxy, self.raw = client, proxy, raw


@asynccontextmanager
async def behind_proxy(data: Path, patience: Patience | None = None) -> AsyncIterator[Rejoining]:
    async with (
        served(config(data, writer_stall_seconds=1.0)) as raw,
        TcpProxy(raw.caller.address) as proxy,
        ArtifactsClient(proxy.address, patience=patience) as client,
    ):
        yield Rejoining(client, proxy, raw)


def passed(world: Rejoining, way: str, count: int) -> bool:
    """Whether so many bytes have gone through the proxy."""
    return (world.proxy.bytes_up if way == "up" else world.proxy.bytes_down) > count


async def test_an_upload_goes_on_where_the_connection_broke(tmp_path: Path) -> None:
    data = content(40 * MIB)
    breaks = 3
    async with behind_proxy(tmp_path) as world:
        upload = asyncio.ensure_future(world.client.upload(data))
        for number in range(1, breaks + 1):
            await until(partial(passed, world, "up", number * 8 * MIB))
            assert not upload.done()
            await world.proxy.reset()
        assert (await upload).sha256 == sha256(data)
        # What was on its way at a break is sent again: the buffers of two sockets, of the proxy, and of gRPC.
        assert world.proxy.bytes_up < len(data) + breaks * 10 * MIB
        assert b"".join(each.data for each in await world.raw.read(sha256(data))) == data


async def test_an_upload_waits_for_a_service_that_is_away_for_a_moment(tmp_path: Path) -> None:
    data = content(20 * MIB)
    async with behind_proxy(tmp_path) as world:
        upload = asyncio.ensure_future(world.client.upload(data))
        await until(lambda: passed(world, "up", 5 * MIB))
        await world.proxy.cut()
        await asyncio.wait([upload], timeout=0.3)
        world.proxy.restore()
        assert (await upload).size == len(data)


async def test_patience_is_bounded(tmp_path: Path) -> None:
    patience = Patience(attempts=3, pause=0.01, longest_pause=0.05)
    async with behind_proxy(tmp_path, patience) as world:
        await world.proxy.cut()
        with pytest.raises(errors.Unavailable):
            await world.client.upload(b"bytes")
        world.proxy.restore()
        async with ArtifactsClient(world.proxy.address) as patient:
            assert (await patient.upload(b"bytes")).size == 5


async def test_a_download_goes_on_where_the_connection_broke(tmp_path: Path) -> None:
    data = content(40 * MIB)
    breaks = 3
    async with behind_proxy(tmp_path / "data") as world:
        digest = (await world.raw.upload(data)).sha256
        target = tmp_path / "target"
        download = asyncio.ensure_future(world.client.download_to(digest, target))
        for number in range(1, breaks + 1):
            await until(partial(passed, world, "down", number * 8 * MIB))
            assert not download.done()
            await world.proxy.reset()
        await download
        assert sha256(await asyncio.to_thread(target.read_bytes)) == digest
        assert world.proxy.bytes_down < len(data) + breaks * 10 * MIB


async def test_damage_is_found_even_when_a_break_hides_it_from_the_service(tmp_path: Path) -> None:
    data = content(20 * MIB)
    async with behind_proxy(tmp_path / "data") as world:
        digest = (await world.raw.upload(data)).sha256
        await asyncio.to_thread(damage, tmp_path / "data" / "objects" / "blobs" / digest[:2] / digest)
        download = asyncio.ensure_future(world.client.download(digest))
        await until(lambda: passed(world, "down", 6 * MIB))
        await world.proxy.reset()  # what is read from here on is a range, which the service cannot verify
        with pytest.raises(errors.DataLoss):
            await download


async def test_a_lost_answer_to_finish_does_no_harm(tmp_path: Path) -> None:
    data = content(1000)
    async with behind_proxy(tmp_path) as world:
        await world.client.upload(content(10))
        world.proxy.blackhole(up=False, down=True)
        upload = asyncio.ensure_future(world.client.upload(data))
        await asyncio.wait([upload], timeout=0.2)
        await world.proxy.reset()
        world.proxy.restore()
        assert (await upload).sha256 == sha256(data)


async def test_uploads_of_the_same_bytes_by_two_clients_at_once(tmp_path: Path) -> None:
    data = content(5 * MIB)
    async with client_of(tmp_path) as (client, raw), ArtifactsClient(raw.caller.address) as other:
        one, two = await asyncio.gather(client.upload(data), other.upload(data))
        assert one == two


async def test_a_blob_that_goes_while_its_artifact_is_made_is_sent_again(tmp_path: Path) -> None:
    class Racing(ArtifactsClient):
        """After its first upload another client deletes the blob."""

        uploads = 0

        async def upload(self, source: Content) -> pb.Blob:
            blob = await super().upload(source)
            self.uploads += 1
            if self.uploads == 1:
                await self.delete_blob(blob.sha256)
            return blob

    async with served(config(tmp_path)) as raw, Racing(raw.caller.address) as client:
        artifact = await client.create_artifact("model", {"a": b"bytes"})
        assert client.uploads == 2
        assert await client.download(artifact.files[0].sha256) == b"bytes"


@pytest.fixture
def quiet_port() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


async def test_a_service_that_never_answers_is_unavailable(quiet_port: str) -> None:
    patience = Patience(attempts=2, pause=0.01)
    async with ArtifactsClient(quiet_port, timeout=2, patience=patience) as client:
        with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
            await client.upload(b"x")
        with pytest.raises(errors.Unavailable):
            await client.ready(0.1)


async def test_build_refuses_an_unknown_store(tmp_path: Path) -> None:
    with pytest.raises(errors.Invalid) as unknown:
        build(config(tmp_path, store="../s3"))
    assert unknown.value.reason == "UNKNOWN_STORE"
