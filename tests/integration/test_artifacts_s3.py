"""The artifact service over a real S3 server: what it does when that is away, slow, full of refusals, or wrong."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.artifacts import MIB, Raw, config, content, raw_calls, s3_settings, served, sha256
from tests.support.proxy import TcpProxy
from tests.support.s3 import S3Server, running_s3
from tests.support.serve import serving
from tests.support.wait import until
from tidemill import errors
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb
from tidemill.artifacts.app import build
from tidemill.artifacts.stores.base import CHUNK
from tidemill.artifacts.stores.s3 import ATTEMPTS, S3Store
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.rpc import deadline

A = sha256(b"a")


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[S3Server]:
    """A server that the test may stop."""
    with running_s3(tmp_path / "s3") as server:
        yield server


@asynccontextmanager
async def store_of(tmp_path: Path, **settings: Any) -> AsyncIterator[S3Store]:
    store = S3Store.open(config(tmp_path, **settings))
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def store_behind_proxy(tmp_path: Path, server: S3Server) -> AsyncIterator[tuple[S3Store, TcpProxy]]:
    async with TcpProxy(server.endpoint) as proxy:
        settings = {**s3_settings(server, server.make_bucket()), "s3_endpoint": proxy.address}
        async with store_of(tmp_path, **settings) as store:
            yield store, proxy


async def serving_status(raw: Raw) -> bool:
    health: Any = health_pb2_grpc.HealthStub(raw.caller.channel)
    answer = await health.Check(health_pb2.HealthCheckRequest())
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def not_serving(raw: Raw) -> bool:
    return not await serving_status(raw)


async def created(raw: Raw, data: bytes) -> pb.Upload | None:
    try:
        return await raw.create(data)
    except errors.Unavailable:
        return None


async def finished(raw: Raw, name: str) -> pb.Blob | None:
    try:
        blob: pb.Blob = await raw.call("FinishUpload", pb.FinishUploadRequest(name=name))
    except errors.Unavailable:
        return None
    return blob


async def test_everything_over_s3(tmp_path: Path, s3_server: S3Server) -> None:
    settings = config(tmp_path, **s3_settings(s3_server, s3_server.make_bucket()))
    big = content(20 * MIB)
    async with served(settings) as raw, ArtifactsClient(raw.caller.address) as client:
        one = await client.create_artifact("model", {"big": big, "shared": b"shared"}, reference="jobs/j")
        two = await client.create_artifact("logs", {"log": b"shared"})
        assert sha256(await client.download(one.files[0].sha256)) == sha256(big)
        assert [each.digest async for each in client.list_artifacts()] == sorted([one.digest, two.digest])
        with pytest.raises(errors.FailedPrecondition):
            await client.delete_artifact(one.digest)
        await client.remove_reference(one.digest, "jobs/j")
        await client.delete_artifact(one.digest)
        assert [blob.sha256 async for blob in client.list_blobs()] == [sha256(b"shared")]
        assert not list((tmp_path / "uploads").iterdir())
    async with served(settings) as raw, ArtifactsClient(raw.caller.address) as client:
        assert await client.get_artifact(two.digest) == two
        with pytest.raises(errors.FailedPrecondition):
            await client.delete_blob(sha256(b"shared"))
        await client.delete_artifact(two.digest)
        assert [blob async for blob in client.list_blobs()] == []


async def test_a_blob_that_changed_on_the_server_is_data_loss(tmp_path: Path, s3_server: S3Server) -> None:
    bucket = s3_server.make_bucket()
    async with served(config(tmp_path, **s3_settings(s3_server, bucket))) as raw:
        digest = (await raw.upload(b"right bytes")).sha256
        s3_server.client().remove_object(bucket, f"blobs/{digest}")
        wrong = tmp_path / "wrong"
        await asyncio.to_thread(wrong.write_bytes, b"wrong bytes")
        s3_server.client().fput_object(bucket, f"blobs/{digest}", str(wrong))
        with pytest.raises(errors.DataLoss):
            await raw.read(digest)
        await raw.upload(b"right bytes")
        assert b"".join(each.data for each in await raw.read(digest)) == b"right bytes"


async def test_away_and_back(tmp_path: Path, own_server: S3Server) -> None:
    data = content(2 * MIB)
    app = build(config(tmp_path / "data", **s3_settings(own_server, own_server.make_bucket())))
    async with serving(app) as address, raw_calls(address) as raw, ArtifactsClient(address) as client:
        await until(lambda: serving_status(raw))
        kept = await client.create_artifact("model", {"a": b"kept"})
        upload = await raw.create(data)
        await raw.send(upload.name, data)
        own_server.kill()
        await until(lambda: not_serving(raw))
        assert not app.ready
        calls: list[tuple[str, Any]] = [
            ("GetArtifact", pb.GetArtifactRequest(name=kept.name)),
            ("DeleteArtifact", pb.DeleteArtifactRequest(name=kept.name)),
            ("CreateUpload", pb.CreateUploadRequest(sha256=A, size=1)),
            ("FinishUpload", pb.FinishUploadRequest(name=upload.name)),
        ]
        for method, request in calls:
            with pytest.raises(errors.Unavailable):
                await raw.call(method, request, timeout=10)
        with pytest.raises(errors.Unavailable):
            await raw.read(sha256(b"kept"))
        assert (await raw.call("GetUpload", pb.GetUploadRequest(name=upload.name))).offset == len(data)
        own_server.start()
        await until(lambda: serving_status(raw))
        # The server answers before it can take everything.
        blob = await until(lambda: finished(raw, upload.name))
        assert blob.sha256 == sha256(data)
        assert await client.get_artifact(kept.digest) == kept
        assert await client.download(sha256(b"kept")) == b"kept"


async def test_a_client_outlasts_a_restart_of_the_store(tmp_path: Path, own_server: S3Server) -> None:
    settings = s3_settings(own_server, own_server.make_bucket())
    async with served(config(tmp_path / "data", **settings)) as raw, ArtifactsClient(raw.caller.address) as client:
        own_server.kill()
        creation = asyncio.ensure_future(client.create_artifact("model", {"a": content(MIB)}))
        await asyncio.wait([creation], timeout=0.3)
        own_server.start()
        artifact = await creation
        assert await client.download(artifact.files[0].sha256) == content(MIB)


async def test_a_service_starts_before_its_store(tmp_path: Path, own_server: S3Server) -> None:
    settings = s3_settings(own_server, own_server.make_bucket())
    own_server.kill()
    async with served(config(tmp_path / "data", **settings)) as raw:
        assert not await serving_status(raw)
        with pytest.raises(errors.Unavailable):
            await raw.upload(b"bytes")
        own_server.start()
        await until(lambda: serving_status(raw))
        upload = await until(lambda: created(raw, b"bytes"))
        await raw.send(upload.name, b"bytes")
        assert (await until(lambda: finished(raw, upload.name))).size == 5


async def test_a_store_that_hangs_does_not_hold_calls_beyond_their_deadline(
    tmp_path: Path, own_server: S3Server
) -> None:
    settings = {**s3_settings(own_server, own_server.make_bucket()), "s3_timeout": 2.0}
    async with served(config(tmp_path / "data", **settings)) as raw:
        blob = await raw.upload(b"bytes")
        upload = await raw.create(b"more bytes")
        await raw.send(upload.name, b"more bytes")
        own_server.pause()
        for method, request in (
            ("CreateUpload", pb.CreateUploadRequest(sha256=A, size=1)),
            ("FinishUpload", pb.FinishUploadRequest(name=upload.name)),
            ("DeleteBlob", pb.DeleteBlobRequest(name=f"blobs/{A}")),
        ):
            with pytest.raises(errors.Unavailable):  # and not DeadlineExceeded
                await raw.call(method, request, timeout=1.5)
        # The channel repeats reads that are answered so, until their time is over.
        with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
            await raw.call("GetBlob", pb.GetBlobRequest(name=blob.name), timeout=1.5)
        await until(lambda: not_serving(raw))
        own_server.resume()
        await until(lambda: serving_status(raw))
        assert (await until(lambda: finished(raw, upload.name))).size == 10
        assert b"".join(each.data for each in await raw.read(blob.sha256)) == b"bytes"


async def test_a_read_goes_on_when_the_connection_to_the_store_breaks(tmp_path: Path, s3_server: S3Server) -> None:
    data = content(24 * CHUNK)
    source = tmp_path / "source"
    await asyncio.to_thread(source.write_bytes, data)
    async with store_behind_proxy(tmp_path, s3_server) as (store, proxy):
        await store.put(f"blobs/{A}", source)
        got = b""
        async with aclosing(store.get(f"blobs/{A}")) as pieces:
            async for piece in pieces:
                got += piece
                if len(got) in (2 * CHUNK, 8 * CHUNK):
                    await proxy.reset()
        assert sha256(got) == sha256(data)


async def test_writes_are_not_repeated_but_reads_are(tmp_path: Path, s3_server: S3Server) -> None:
    source = tmp_path / "source"
    await asyncio.to_thread(source.write_bytes, b"x")
    accepted = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        writer.transport.abort()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server, store_of(tmp_path, **{**s3_settings(s3_server, "bucket"), "s3_endpoint": endpoint}) as store:
        for work, attempts in (
            (store.put(f"blobs/{A}", source), 1),
            (store.put_small(f"manifests/{A}", b"x"), 1),
            (store.delete(f"manifests/{A}"), 1),
            (store.stat(f"manifests/{A}"), ATTEMPTS),
            (store.read_small(f"manifests/{A}"), ATTEMPTS),
            (store.entries("manifests/"), ATTEMPTS),
        ):
            accepted = 0
            with pytest.raises(errors.Unavailable):
                await work
            assert accepted == attempts


async def test_the_bucket_is_made_only_when_that_is_allowed(tmp_path: Path, s3_server: S3Server) -> None:
    settings = s3_settings(s3_server, f"test-{tmp_path.parent.name[-8:]}-made-by-us".lower())
    async with store_of(tmp_path, **settings) as store:
        with pytest.raises(errors.Unavailable) as missing:
            await store.check()
        assert missing.value.reason == "BUCKET_MISSING"
        with pytest.raises(errors.Unavailable):
            await store.put_small(f"manifests/{A}", b"x")
    async with store_of(tmp_path, **settings, s3_create_bucket=True) as store:
        await asyncio.gather(*(store.check() for _ in range(5)))
        assert await store.put_small(f"manifests/{A}", b"x")
        await store.check()
    async with store_of(tmp_path, **settings) as store:
        await store.check()


async def test_credentials_that_are_wrong_or_may_only_read(tmp_path: Path, s3_server: S3Server) -> None:
    settings = s3_settings(s3_server, s3_server.make_bucket())
    async with store_of(tmp_path, **settings) as store:
        await store.put_small(f"manifests/{A}", b"x")
    wrong = {**settings, "s3_secret_key": "wrong"}
    async with store_of(tmp_path, **wrong) as store:
        for work in (store.check(), store.stat(f"manifests/{A}"), store.put_small(f"manifests/{A}", b"y")):
            with pytest.raises(errors.Unavailable) as denied:
                await work
            assert denied.value.reason == "STORE_DENIED"
            assert "wrong" not in denied.value.message
    reader = {
        **settings,
        "s3_access_key": s3_server.reader_access_key,
        "s3_secret_key": s3_server.reader_secret_key,
    }
    async with store_of(tmp_path, **reader) as store:
        assert await store.read_small(f"manifests/{A}") == b"x"
        for write in (store.put_small(f"manifests/{sha256(b'b')}", b"y"), store.delete(f"manifests/{A}")):
            with pytest.raises(errors.Unavailable) as denied:
                await write
            assert denied.value.reason == "STORE_DENIED"


async def test_what_is_no_s3_server_is_unavailable(tmp_path: Path, s3_server: S3Server) -> None:
    settings = s3_settings(s3_server, "some-bucket")

    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = b"<html>a proxy's page</html>"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(page, "127.0.0.1", 0)
    async with server:
        endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with store_of(tmp_path, **{**settings, "s3_endpoint": endpoint}) as store:
            with pytest.raises(errors.Unavailable) as odd:
                await store.entries("blobs/")
            assert odd.value.reason == "STORE_UNREACHABLE"


async def test_reads_keep_to_the_callers_deadline(tmp_path: Path, s3_server: S3Server) -> None:
    async with store_behind_proxy(tmp_path, s3_server) as (store, proxy):
        proxy.blackhole()

        async def hurried() -> None:
            deadline.start(0.3)
            await store.stat(f"blobs/{A}")

        with pytest.raises(errors.Unavailable) as late:
            await asyncio.create_task(hurried())
        assert late.value.reason == "STORE_TIMEOUT"
        proxy.restore()


@pytest.mark.parametrize(
    "settings",
    [
        {"s3_endpoint": ""},
        {"s3_endpoint": "http://with.scheme/and/path"},
        {"s3_bucket": ""},
        {"s3_bucket": "../x"},
        {"s3_bucket": "ab"},
        {"s3_access_key": ""},
        {"s3_secret_key": ""},
    ],
)
async def test_settings_that_lack_something_are_refused(
    tmp_path: Path, s3_server: S3Server, settings: dict[str, str]
) -> None:
    with pytest.raises(errors.Invalid):
        S3Store.open(config(tmp_path, **{**s3_settings(s3_server, "bucket"), **settings}))


def test_an_s3_server_is_not_for_a_directory(tmp_path: Path, s3_server: S3Server) -> None:
    with pytest.raises(errors.Invalid, match="s3_endpoint"):
        config(tmp_path, **{**s3_settings(s3_server, "bucket"), "store": "directory"})


def test_secrets_are_not_shown(tmp_path: Path, s3_server: S3Server) -> None:
    settings = config(tmp_path, **s3_settings(s3_server, "bucket"))
    assert s3_server.secret_key not in repr(settings)
    secrets = {field.name for field in dataclasses.fields(settings) if field.metadata["secret"]}
    assert secrets == {"s3_access_key", "s3_secret_key"}
