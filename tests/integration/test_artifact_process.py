"""The artifact service as a process: killed, out of disk, and with more bytes passing through than it may hold."""

import asyncio
import os
import resource
import signal
import sys
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.artifacts import MIB, Raw, ServiceProcess, content, raw_calls, service_process, sha256
from tests.support.paused import pause
from tests.support.s3 import S3Server
from tests.support.transfer_memory import peak
from tests.support.wait import until
from tidemill import errors
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb
from tidemill.artifacts.spool import SAFE_EVERY
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.patience import Patience


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[ServiceProcess]:
    with service_process(tmp_path / "data", tmp_path) as process:
        yield process


async def offset(raw: Raw, name: str) -> int:
    return int((await raw.call("GetUpload", pb.GetUploadRequest(name=name))).offset)


async def test_an_upload_survives_the_death_of_the_service(service: ServiceProcess) -> None:
    data = content(3 * SAFE_EVERY)
    async with raw_calls(service.address) as raw:
        name = (await raw.create(data)).name
        sent = asyncio.Event()

        async def requests() -> AsyncIterator[pb.WriteUploadRequest]:
            for at in range(0, 2 * SAFE_EVERY + 3 * MIB, MIB):
                yield pb.WriteUploadRequest(name=name, offset=at, data=data[at : at + MIB])
            sent.set()
            await asyncio.Event().wait()

        stream = asyncio.ensure_future(raw.caller.upload(raw.stub.WriteUpload, requests()))
        await sent.wait()
        await until(lambda: reached(raw, name, 2 * SAFE_EVERY + 3 * MIB))
        service.kill()
        with pytest.raises(errors.Unavailable):
            await stream
        service.start()
        await until(lambda: reached(raw, name, 2 * SAFE_EVERY))
        await raw.send(name, data, start=2 * SAFE_EVERY)
        blob = await raw.call("FinishUpload", pb.FinishUploadRequest(name=name))
        assert blob.sha256 == sha256(data)


async def reached(raw: Raw, name: str, least: int) -> bool:
    try:
        return await offset(raw, name) >= least
    except errors.Unavailable:  # it is not back yet
        return False


async def test_the_client_does_not_notice_that_the_service_died(service: ServiceProcess, tmp_path: Path) -> None:
    data = content(60 * MIB)
    async with raw_calls(service.address) as raw, ArtifactsClient(service.address) as client:
        upload = asyncio.ensure_future(client.upload(data))
        staged = tmp_path / "data" / "uploads"
        await until(lambda: any(path.stat().st_size > 20 * MIB for path in staged.glob("*.bytes")))
        service.kill()
        assert not upload.done()
        service.start()
        assert (await upload).sha256 == sha256(data)
        assert b"".join(each.data for each in await raw.read(sha256(data))) == data
        assert list(staged.iterdir()) == []


async def test_sigterm_ends_it_in_good_order(service: ServiceProcess) -> None:
    async with raw_calls(service.address) as raw:
        data = content(2 * MIB)
        name = (await raw.create(data)).name
        await raw.write(name, (0, data[:MIB]))
        assert await asyncio.to_thread(service.stop) == 0
        service.start()
        await until(lambda: reached(raw, name, MIB))
        await raw.send(name, data, start=MIB)
        assert (await raw.call("FinishUpload", pb.FinishUploadRequest(name=name))).size == len(data)


async def test_a_full_disk_is_exhausted_and_forgotten_when_there_is_space(
    service: ServiceProcess, tmp_path: Path
) -> None:
    data = content(4 * MIB)
    unlimited = resource.RLIM_INFINITY
    async with raw_calls(service.address) as raw, ArtifactsClient(service.address) as client:
        before = (await client.upload(b"before")).sha256
        # No file may grow beyond this: the kernel refuses writes as on a full disk.
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (2 * MIB + 100, unlimited))
        with pytest.raises(errors.Exhausted) as full:
            await client.upload(data)
        assert full.value.reason == "DISK_FULL"
        assert await client.download(before) == b"before"
        assert (await client.upload(b"small things still fit")).size == 22
        (record,) = (tmp_path / "data" / "uploads").glob("*.json")
        name = f"uploads/{record.stem}"
        assert await offset(raw, name) == 2 * MIB
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        await raw.send(name, data, start=2 * MIB)
        assert (await raw.call("FinishUpload", pb.FinishUploadRequest(name=name))).sha256 == sha256(data)
        assert await client.download(sha256(data)) == data


async def test_a_disk_that_is_full_for_every_byte(service: ServiceProcess) -> None:
    async with raw_calls(service.address) as raw:
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        with pytest.raises(errors.Exhausted):
            await raw.create(b"x")
        with pytest.raises(errors.NotFound):
            await raw.call("GetBlob", pb.GetBlobRequest(name=f"blobs/{sha256(b'x')}"))
        resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert (await raw.upload(b"x")).size == 1


async def test_metrics_count_bytes(service: ServiceProcess) -> None:
    async with ArtifactsClient(service.address) as client:
        digest = (await client.upload(content(1000))).sha256
        await client.upload(content(1000))
        await client.download(digest)
    page = await asyncio.to_thread(fetch, f"http://127.0.0.1:{service.ops_port()}/metrics")
    for line in (
        "tidemill_blob_bytes_in_total 1000.0",
        "tidemill_blob_bytes_out_total 1000.0",
        "tidemill_blobs_deduplicated_total 1.0",
        "tidemill_blobs_damaged_total 0.0",
        'tidemill_dependency_up{name="store"} 1.0',
    ):
        assert line in page.splitlines()


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as reply:
        return str(reply.read().decode())


@pytest.mark.parametrize("store", ["directory", "s3"])
async def test_memory_does_not_grow_with_what_passes_through(
    request: pytest.FixtureRequest, tmp_path: Path, store: str
) -> None:
    variables = {"MALLOC_ARENA_MAX": "2", "TIDEMILL_ARTIFACTS_STORE": store}
    if store == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        variables |= {
            "TIDEMILL_ARTIFACTS_S3_ENDPOINT": server.endpoint,
            "TIDEMILL_ARTIFACTS_S3_BUCKET": server.make_bucket(),
            "TIDEMILL_ARTIFACTS_S3_SECURE": "false",
            "TIDEMILL_ARTIFACTS_S3_ACCESS_KEY": server.access_key,
            "TIDEMILL_ARTIFACTS_S3_SECRET_KEY": server.secret_key,
        }
    small, large = 20 * MIB, 100 * MIB
    for name, size in (("small", small), ("large", large)):
        await asyncio.to_thread((tmp_path / name).write_bytes, content(size))
    with service_process(tmp_path / "data", tmp_path, variables) as service:
        async with ArtifactsClient(service.address) as client:
            await client.download_to((await client.upload(tmp_path / "small")).sha256, tmp_path / "target")
        before = peak(service.pid)
        mover = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.transfer_memory",
            service.address,
            *(str(tmp_path / name) for name in ("small", "large", "target")),
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await mover.communicate()
        assert mover.returncode == 0
        assert int(output) < large / 4, "the client"
        assert peak(service.pid) - before < large / 4, "the service"


async def test_a_paused_service_fails_calls_in_time_and_goes_on_later(service: ServiceProcess) -> None:
    async with ArtifactsClient(service.address, timeout=1.0, patience=Patience(attempts=2)) as client:
        blob = await client.upload(b"bytes")
        pause(service.pid)
        try:
            with pytest.raises((errors.DeadlineExceeded, errors.Unavailable)):
                await client.get_blob(blob.sha256)
        finally:
            os.kill(service.pid, signal.SIGCONT)
        assert await client.download(blob.sha256) == b"bytes"
