"""Uploads over the wire: resumable, verified, bounded, and given up when nobody cares for them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tests.support.artifacts import MIB, Raw, config, content, raw_calls, served, sha256
from tests.support.clock import ManualClock
from tests.support.serve import serving
from tests.support.wait import until
from tidemill import errors
from tidemill.api.artifacts.v1 import artifacts_pb2 as pb
from tidemill.artifacts.app import MAINTENANCE, build
from tidemill.rpc.app import App


class Stream:
    """A WriteUpload under the test's hand."""

    def __init__(self, raw: Raw, name: str) -> None:
        self._name = name
        self._chunks: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue()
        self.result = asyncio.ensure_future(raw.caller.upload(raw.stub.WriteUpload, self._requests(), timeout=30))

    async def _requests(self) -> AsyncIterator[pb.WriteUploadRequest]:
        while (chunk := await self._chunks.get()) is not None:
            yield pb.WriteUploadRequest(name=self._name, offset=chunk[0], data=chunk[1])

    def send(self, offset: int, data: bytes) -> None:
        self._chunks.put_nowait((offset, data))

    def end(self) -> None:
        self._chunks.put_nowait(None)


async def offset(raw: Raw, name: str) -> int:
    return int((await raw.call("GetUpload", pb.GetUploadRequest(name=name))).offset)


async def finish(raw: Raw, name: str) -> pb.Blob:
    blob: pb.Blob = await raw.call("FinishUpload", pb.FinishUploadRequest(name=name))
    return blob


def sample(registry: CollectorRegistry, name: str) -> float:
    return registry.get_sample_value(f"tidemill_{name}_total") or 0.0


@asynccontextmanager
async def app_and_raw(data: Path, clock: ManualClock | None = None, **settings: Any) -> AsyncIterator[tuple[App, Raw]]:
    app = build(config(data, **settings), clock=clock)
    async with serving(app) as address, raw_calls(address) as raw:
        yield app, raw


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 7])
async def test_a_blob_appears_when_its_upload_is_finished(tmp_path: Path, size: int) -> None:
    data = content(size)
    async with served(config(tmp_path)) as raw:
        upload = await raw.create(data)
        assert (upload.state, upload.offset, upload.size) == (pb.Upload.STATE_ACTIVE, 0, size)
        if data:
            assert (await raw.send(upload.name, data)).offset == size
        with pytest.raises(errors.NotFound):
            await raw.call("GetBlob", pb.GetBlobRequest(name=f"blobs/{sha256(data)}"))
        blob = await finish(raw, upload.name)
        assert (blob.name, blob.sha256, blob.size) == (f"blobs/{sha256(data)}", sha256(data), size)
        assert blob == await raw.call("GetBlob", pb.GetBlobRequest(name=blob.name))
        assert b"".join(each.data for each in await raw.read(blob.sha256)) == data
        assert list((tmp_path / "uploads").iterdir()) == []


async def test_the_same_bytes_are_sent_once(tmp_path: Path) -> None:
    data = content(100)
    async with app_and_raw(tmp_path) as (app, raw):
        await raw.upload(data)
        upload = await raw.create(data)
        assert (upload.state, upload.offset) == (pb.Upload.STATE_COMPLETE, 100)
        assert (await finish(raw, upload.name)).size == 100
        with pytest.raises(errors.FailedPrecondition):
            await raw.send(upload.name, data)
        registry = app.telemetry.registry
        assert sample(registry, "blobs_deduplicated") == 1
        assert sample(registry, "blob_bytes_in") == 100


async def test_two_uploads_of_the_same_bytes_at_once_are_both_fine(tmp_path: Path) -> None:
    data = content(2 * MIB)
    async with served(config(tmp_path)) as raw:
        one, two = await raw.create(data), await raw.create(data)
        assert one.name != two.name
        await asyncio.gather(raw.send(one.name, data), raw.send(two.name, data))
        first, second = await asyncio.gather(finish(raw, one.name), finish(raw, two.name))
        assert first == second


async def test_chunks_that_are_known_are_skipped(tmp_path: Path) -> None:
    data = content(1000)
    async with app_and_raw(tmp_path) as (app, raw):
        name = (await raw.create(data)).name
        await raw.write(name, (0, data[:400]), (0, data[:400]), (100, data[100:200]), (300, data[300:600]))
        assert await offset(raw, name) == 600
        await raw.write(name, (0, data))
        assert (await finish(raw, name)).sha256 == sha256(data)
        assert sample(app.telemetry.registry, "blob_bytes_in") == 1000


async def test_a_gap_is_out_of_range_and_says_where_to_go_on(tmp_path: Path) -> None:
    data = content(1000)
    async with served(config(tmp_path)) as raw:
        name = (await raw.create(data)).name
        with pytest.raises(errors.OutOfRange) as gap:
            await raw.write(name, (0, data[:10]), (11, data[11:]))
        assert (gap.value.reason, gap.value.metadata["offset"]) == ("UPLOAD_GAP", "10")
        await raw.write(name, (10, data[10:]))
        assert (await finish(raw, name)).size == 1000


async def test_more_than_announced_is_out_of_range(tmp_path: Path) -> None:
    async with served(config(tmp_path)) as raw:
        name = (await raw.create(b"1234")).name
        with pytest.raises(errors.OutOfRange) as beyond:
            await raw.write(name, (0, b"12345"))
        assert beyond.value.reason == "BEYOND_SIZE"
        await raw.write(name, (0, b"1234"))
        assert (await finish(raw, name)).size == 4


async def test_bad_streams_are_refused(tmp_path: Path) -> None:
    data = content(3 * MIB)
    async with served(config(tmp_path)) as raw:
        name = (await raw.create(data)).name
        with pytest.raises(errors.Invalid):
            await raw.write(name)
        with pytest.raises(errors.Invalid):
            await raw.write(name, (0, data[: MIB + 1]))
        with pytest.raises(errors.Invalid):
            await raw.write(name, (-1, b"x"))

        async def renamed() -> AsyncIterator[pb.WriteUploadRequest]:
            yield pb.WriteUploadRequest(name=name, offset=0, data=b"x")
            yield pb.WriteUploadRequest(name="uploads/other", offset=1, data=b"x")

        with pytest.raises(errors.Invalid):
            await raw.caller.upload(raw.stub.WriteUpload, renamed())
        assert await offset(raw, name) == 1


async def test_an_upload_that_lacks_bytes_cannot_be_finished_but_goes_on(tmp_path: Path) -> None:
    data = content(1000)
    async with served(config(tmp_path)) as raw:
        name = (await raw.create(data)).name
        await raw.write(name, (0, data[:999]))
        with pytest.raises(errors.FailedPrecondition) as incomplete:
            await finish(raw, name)
        assert (incomplete.value.reason, incomplete.value.metadata["offset"]) == ("UPLOAD_INCOMPLETE", "999")
        await raw.write(name, (999, data[999:]))
        assert (await finish(raw, name)).size == 1000


async def test_corrupted_bytes_are_data_loss_and_the_upload_is_gone(tmp_path: Path) -> None:
    data = content(2 * MIB)
    wrong = bytearray(data)
    wrong[MIB + 5] ^= 1
    async with served(config(tmp_path)) as raw:
        name = (await raw.create(data)).name
        await raw.send(name, bytes(wrong))
        with pytest.raises(errors.DataLoss) as loss:
            await finish(raw, name)
        assert loss.value.metadata["sha256"] == sha256(bytes(wrong))
        for digest in (sha256(data), sha256(bytes(wrong))):
            with pytest.raises(errors.NotFound):
                await raw.call("GetBlob", pb.GetBlobRequest(name=f"blobs/{digest}"))
        with pytest.raises(errors.NotFound):
            await offset(raw, name)
        assert list((tmp_path / "uploads").iterdir()) == []
        assert (await raw.upload(data)).size == len(data)


async def test_finishing_can_be_repeated(tmp_path: Path) -> None:
    data = content(MIB)
    async with served(config(tmp_path)) as raw:
        name = (await raw.create(data)).name
        await raw.send(name, data)
        blobs = await asyncio.gather(*(finish(raw, name) for _ in range(5)))
        assert blobs == [blobs[0]] * 5
        assert await finish(raw, name) == blobs[0]
        state = await raw.call("GetUpload", pb.GetUploadRequest(name=name))
        assert (state.state, state.offset) == (pb.Upload.STATE_COMPLETE, MIB)


async def test_one_writer_at_a_time(tmp_path: Path) -> None:
    data = content(1000)
    async with served(config(tmp_path)) as raw:
        name = (await raw.create(data)).name
        first = Stream(raw, name)
        first.send(0, data[:100])
        await until(lambda: _reached(raw, name, 100))
        with pytest.raises(errors.FailedPrecondition) as busy:
            await raw.write(name, (100, data[100:200]))
        assert busy.value.reason == "UPLOAD_BUSY"
        first.send(100, data[100:])
        first.end()
        assert (await first.result).offset == 1000
        assert (await finish(raw, name)).size == 1000


async def _reached(raw: Raw, name: str, expected: int) -> bool:
    return await offset(raw, name) == expected


async def test_a_silent_writer_is_taken_over(tmp_path: Path) -> None:
    data, clock = content(1000), ManualClock()
    async with served(config(tmp_path, writer_stall_seconds=5.0), clock=clock) as raw:
        name = (await raw.create(data)).name
        first = Stream(raw, name)
        first.send(0, data[:100])
        await until(lambda: _reached(raw, name, 100))
        clock.jump(5.1)
        assert (await raw.write(name, (100, data[100:500]))).offset == 500
        first.send(100, b"other bytes than the announced ones")
        with pytest.raises(errors.Stale) as fenced:
            await first.result
        assert fenced.value.reason == "UPLOAD_TAKEN_OVER"
        await raw.write(name, (500, data[500:]))
        assert (await finish(raw, name)).sha256 == sha256(data)


async def test_what_arrived_before_a_broken_stream_stays(tmp_path: Path) -> None:
    data = content(3 * MIB)
    async with served(config(tmp_path)) as raw:
        name = (await raw.create(data)).name
        stream = Stream(raw, name)
        stream.send(0, data[:MIB])
        await until(lambda: _reached(raw, name, MIB))
        stream.result.cancel()
        await until(lambda: _writes(raw, name, (MIB, data[MIB : MIB + 10])))
        await raw.send(name, data, start=MIB + 10)
        assert (await finish(raw, name)).sha256 == sha256(data)


async def _writes(raw: Raw, name: str, chunk: tuple[int, bytes]) -> bool:
    try:
        await raw.write(name, chunk)
    except errors.FailedPrecondition:  # the broken stream was not noticed yet
        return False
    return True


async def test_an_upload_goes_on_in_the_next_process(tmp_path: Path) -> None:
    data = content(3 * MIB)
    async with served(config(tmp_path)) as raw:
        name = (await raw.create(data)).name
        await raw.send(name, data[: 2 * MIB])
    async with served(config(tmp_path)) as raw:
        assert await offset(raw, name) == 2 * MIB
        await raw.send(name, data, start=2 * MIB)
        assert (await finish(raw, name)).sha256 == sha256(data)
    async with served(config(tmp_path)) as raw:
        assert b"".join(each.data for each in await raw.read(sha256(data))) == data
        with pytest.raises(errors.NotFound):
            await offset(raw, name)


async def test_bytes_that_changed_between_two_processes_are_found(tmp_path: Path) -> None:
    data = content(2 * MIB)
    async with served(config(tmp_path)) as raw:
        name = (await raw.create(data)).name
        await raw.send(name, data)
    (staged,) = (tmp_path / "uploads").glob("*.bytes")
    with staged.open("r+b") as file:
        file.seek(MIB)
        file.write(b"?")
    async with served(config(tmp_path)) as raw:
        with pytest.raises(errors.DataLoss):
            await finish(raw, name)


async def test_leftovers_that_say_nothing_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "uploads"
    async with served(config(tmp_path)) as raw:
        names = [(await raw.create(content(100, seed))).name.removeprefix("uploads/") for seed in range(4)]
        for name in names:
            await raw.write(f"uploads/{name}", (0, b"x" * 10))
    (folder / f"{names[0]}.json").write_text("{")
    (folder / f"{names[1]}.json").unlink()
    (folder / f"{names[2]}.bytes").write_bytes(b"x")
    (folder / f"{names[3]}.new").write_text("half a rec")
    async with served(config(tmp_path)) as raw:
        assert sorted(path.name for path in folder.iterdir()) == [f"{names[3]}.bytes", f"{names[3]}.json"]
        assert await offset(raw, f"uploads/{names[3]}") == 10


async def test_giving_up_frees_everything(tmp_path: Path) -> None:
    data = content(MIB)
    async with served(config(tmp_path)) as raw:
        name = (await raw.create(data)).name
        stream = Stream(raw, name)
        stream.send(0, data[:100])
        await until(lambda: _reached(raw, name, 100))
        await raw.call("AbortUpload", pb.AbortUploadRequest(name=name))
        assert list((tmp_path / "uploads").iterdir()) == []
        stream.send(100, data[100:200])
        with pytest.raises(errors.NotFound):
            await stream.result
        for request in (
            pb.GetUploadRequest(name=name),
            pb.FinishUploadRequest(name=name),
            pb.AbortUploadRequest(name=name),
        ):
            with pytest.raises(errors.NotFound):
                await raw.call(type(request).__name__.removesuffix("Request"), request)
        assert list((tmp_path / "uploads").iterdir()) == []


async def let_pass(clock: ManualClock, seconds: float) -> None:
    """Move the time so slowly that what the service does beside calls keeps up."""
    for _ in range(int(seconds / 10)):
        await clock.until_sleeping(2)  # health and maintenance
        await clock.advance(10)
    await clock.until_sleeping(2)


async def test_idle_uploads_are_given_up(tmp_path: Path) -> None:
    data, clock = content(1000), ManualClock()
    async with served(config(tmp_path, upload_idle_seconds=100.0), clock=clock) as raw:
        idle, busy = await raw.create(data), await raw.create(data)
        assert idle.expire_time.seconds == int(clock.now()) + 100
        await let_pass(clock, 60)
        await raw.write(busy.name, (0, data[:10]))
        await let_pass(clock, 40 + MAINTENANCE)
        assert len(list((tmp_path / "uploads").glob("*.json"))) == 1
        with pytest.raises(errors.NotFound):
            await offset(raw, idle.name)
        assert await offset(raw, busy.name) == 10
        await let_pass(clock, 60 + MAINTENANCE)
        assert list((tmp_path / "uploads").iterdir()) == []


async def test_idle_time_counts_over_a_restart(tmp_path: Path) -> None:
    clock = ManualClock()
    async with served(config(tmp_path, upload_idle_seconds=100.0), clock=clock) as raw:
        name = (await raw.create(b"x")).name
    later = ManualClock(clock.now() + 60)
    async with served(config(tmp_path, upload_idle_seconds=100.0), clock=later) as raw:
        upload = await raw.call("GetUpload", pb.GetUploadRequest(name=name))
        assert upload.expire_time.seconds == int(clock.now()) + 100
        await let_pass(later, 40 + MAINTENANCE)
        assert list((tmp_path / "uploads").iterdir()) == []
