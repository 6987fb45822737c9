"""Every store keeps objects in the same way: this suite runs over all plug-ins, the S3 one on a real S3 server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.support.artifacts import config, content, s3_settings, sha256
from tests.support.s3 import S3Server
from tidemill import errors, plugins
from tidemill.artifacts import stores
from tidemill.artifacts.stores.base import CHUNK, SMALL, Store

Written: TypeAlias = Callable[[bytes], Path]
A, B, C = sha256(b"a"), sha256(b"b"), sha256(b"c")


@pytest.fixture(params=plugins.names(stores))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    settings: dict[str, Any] = {"store": request.param}
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        settings = s3_settings(server, server.make_bucket())
    made = plugins.load(stores, request.param, Store).open(config(tmp_path / "data", **settings))
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def written(tmp_path: Path) -> Written:
    """Makes a local file of bytes."""

    def write(data: bytes) -> Path:
        path = tmp_path / sha256(data)
        path.write_bytes(data)
        return path

    return write


async def read(store: Store, key: str, offset: int = 0, length: int | None = None) -> bytes:
    async with aclosing(store.get(key, offset, length)) as pieces:
        found = [piece async for piece in pieces]
    assert all(0 < len(piece) <= CHUNK for piece in found)
    return b"".join(found)


async def keys(store: Store, prefix: str, start_after: str = "", limit: int = 1000) -> list[str]:
    return [entry.key for entry in await store.entries(prefix, start_after, limit)]


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 5])
async def test_what_was_put_is_read_back(store: Store, written: Written, size: int) -> None:
    data = content(size)
    source = written(data)
    await store.put(f"blobs/{A}", source)
    await asyncio.to_thread(source.unlink)
    entry = await store.stat(f"blobs/{A}")
    assert (entry.key, entry.size) == (f"blobs/{A}", size)
    assert await read(store, f"blobs/{A}") == data


async def test_many_parts_arrive_whole(store: Store, written: Written) -> None:
    data = content(40 * CHUNK + 3)
    await store.put(f"blobs/{A}", written(data))
    assert sha256(await read(store, f"blobs/{A}")) == sha256(data)


@pytest.mark.parametrize("offset", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK])
async def test_ranges(store: Store, written: Written, offset: int) -> None:
    data = content(2 * CHUNK + 7)
    await store.put(f"blobs/{A}", written(data))
    for length in (None, 0, 1, CHUNK, CHUNK + 1, 9 * CHUNK):
        assert await read(store, f"blobs/{A}", offset, length) == data[offset:][:length]


async def test_range_at_the_end_is_empty_and_beyond_it_an_error(store: Store, written: Written) -> None:
    await store.put(f"blobs/{A}", written(b"1234"))
    assert await read(store, f"blobs/{A}", 4) == b""
    with pytest.raises(errors.OutOfRange):
        await read(store, f"blobs/{A}", 5)


async def test_what_is_absent_is_not_found(store: Store) -> None:
    for work in (store.stat(f"blobs/{A}"), read(store, f"blobs/{A}"), store.read_small(f"blobs/{A}")):
        with pytest.raises(errors.NotFound):
            await work
    assert await keys(store, "blobs/") == []


async def test_put_replaces(store: Store, written: Written) -> None:
    for data in (b"first", b"second, and longer"):
        await store.put(f"blobs/{A}", written(data))
        assert await read(store, f"blobs/{A}") == data


async def test_put_of_the_same_file_again(store: Store, written: Written) -> None:
    source = written(b"same")
    await store.put(f"blobs/{A}", source)
    await store.put(f"blobs/{A}", source)
    assert await read(store, f"blobs/{A}") == b"same"
    assert await keys(store, "blobs/") == [f"blobs/{A}"]


async def test_small_objects_never_replace(store: Store) -> None:
    assert await store.put_small(f"manifests/{A}", b"first")
    assert not await store.put_small(f"manifests/{A}", b"second")
    assert await store.read_small(f"manifests/{A}") == b"first"
    assert await store.put_small(f"manifests/{B}", b"")
    assert await store.read_small(f"manifests/{B}") == b""


async def test_one_of_many_writers_of_a_small_object_wins(store: Store) -> None:
    values = [f"value {writer}".encode() for writer in range(6)]
    won = await asyncio.gather(*(store.put_small(f"manifests/{A}", value) for value in values), return_exceptions=True)
    assert won.count(True) == 1
    assert await store.read_small(f"manifests/{A}") == values[won.index(True)]


async def test_small_objects_are_small(store: Store, written: Written) -> None:
    with pytest.raises(errors.Invalid):
        await store.put_small(f"manifests/{A}", bytes(SMALL + 1))
    await store.put(f"manifests/{A}", written(bytes(SMALL + 1)))
    with pytest.raises(errors.DataLoss):
        await store.read_small(f"manifests/{A}")


async def test_lists_are_in_order_and_go_on_where_they_ended(store: Store) -> None:
    digests = sorted(sha256(bytes([number])) for number in range(12))
    for digest in digests:
        await store.put_small(f"manifests/{digest}", digest.encode())
    await store.put_small(f"blobs/{A}", b"elsewhere")
    expected = [f"manifests/{digest}" for digest in digests]
    assert await keys(store, "manifests/") == expected
    assert await keys(store, "manifests/", expected[4]) == expected[5:]
    assert await keys(store, "manifests/", expected[4], limit=3) == expected[5:8]
    assert await keys(store, "manifests/", f"manifests/{'0' * 64}", limit=1) == expected[:1]
    assert await keys(store, "manifests/", f"manifests/{'f' * 64}") == []
    assert await keys(store, "manifests/", "manifests/") == expected
    entry = (await store.entries("manifests/"))[0]
    assert entry == await store.stat(entry.key)


async def test_objects_below_a_digest(store: Store) -> None:
    for above, below in ((A, B), (A, C), (B, C)):
        await store.put_small(f"uses/{above}/{below}", b"")
    assert await keys(store, f"uses/{A}/") == sorted([f"uses/{A}/{B}", f"uses/{A}/{C}"])
    assert await keys(store, f"uses/{C}/") == []
    first = sorted([B, C])[0]
    assert await keys(store, f"uses/{A}/", f"uses/{A}/{first}") == [f"uses/{A}/{max(B, C)}"]
    for below in (B, C):
        await store.delete(f"uses/{A}/{below}")
    assert await keys(store, f"uses/{A}/") == []
    assert await keys(store, "uses/") == [f"uses/{B}/{C}"]
    assert await store.put_small(f"uses/{A}/{C}", b"again")


async def test_delete_can_be_repeated(store: Store) -> None:
    await store.put_small(f"manifests/{A}", b"x")
    await store.delete(f"manifests/{A}")
    await store.delete(f"manifests/{A}")
    with pytest.raises(errors.NotFound):
        await store.stat(f"manifests/{A}")
    assert await store.put_small(f"manifests/{A}", b"new")


async def test_marks_that_come_and_go_at_the_same_time(store: Store) -> None:
    others = [sha256(bytes([number])) for number in range(6)]

    async def come_and_go(other: str) -> None:
        for _ in range(5):
            assert await store.put_small(f"uses/{A}/{other}", b"")
            await store.delete(f"uses/{A}/{other}")

    await asyncio.gather(*(come_and_go(other) for other in others))
    assert await keys(store, f"uses/{A}/") == []


async def test_a_read_that_is_given_up_frees_the_store_for_others(store: Store, written: Written) -> None:
    data = content(3 * CHUNK)
    await store.put(f"blobs/{A}", written(data))
    for _ in range(40):  # more than there are threads or connections
        async with aclosing(store.get(f"blobs/{A}")) as pieces:
            assert await anext(pieces) == data[:CHUNK]
    readers = await asyncio.gather(*(read(store, f"blobs/{A}") for _ in range(20)))
    assert all(found == data for found in readers)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "blobs",
        "blobs/",
        f"blobs/{A[:-1]}",
        f"blobs/{A.upper()}",
        f"/blobs/{A}",
        f"../{A}",
        f"blobs/../{A}",
        f"blobs/{A}/..",
        f"blobs/{A}\n",
        f"blobs/{A}/{B}/{C}",
        f"Blobs/{A}",
    ],
)
async def test_keys_are_digests(store: Store, written: Written, key: str) -> None:
    for work in (store.put(key, written(b"x")), store.put_small(key, b"x"), store.stat(key), store.delete(key)):
        with pytest.raises(errors.Invalid):
            await work
    with pytest.raises(errors.Invalid):
        await read(store, key)
    with pytest.raises(errors.Invalid):
        await store.entries(key + "?")


async def test_a_store_that_can_be_used_says_so(store: Store) -> None:
    await store.check()
