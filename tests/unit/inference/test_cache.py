"""Blobs and manifests on the local disk are what they were, or not there."""

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tidemill.errors import DataLoss, Invalid
from tidemill.inference.cache import BlobCache
from tidemill.inference.files import write_atomically
from tidemill.inference.manifests import File, ManifestCache

DATA = b"weights" * 1000
DIGEST = hashlib.sha256(DATA).hexdigest()
LISTED = (File("model.onnx", DIGEST, len(DATA)), File("a/b.txt", "0" * 64, 3))


async def pieces(data: bytes = DATA) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 999):
        yield data[start : start + 999]


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


async def test_keeps_what_it_was_given(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path / "blobs")
    assert cache.read(DIGEST) is None
    await cache.fill(DIGEST, pieces(), len(DATA))
    assert cache.read(DIGEST) == DATA
    assert BlobCache(tmp_path / "blobs").read(DIGEST) == DATA


def flip(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-1], lambda data: b"", lambda data: data + b"x"])
async def test_changed_blobs_are_not_given_out_and_removed(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    cache = BlobCache(tmp_path)
    await cache.fill(DIGEST, pieces(), len(DATA))
    (tmp_path / DIGEST).write_bytes(damage(DATA))
    assert cache.read(DIGEST) is None
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("data", [flip(DATA), DATA[:-1], DATA + b"x"])
async def test_what_arrives_wrong_is_not_kept(tmp_path: Path, data: bytes) -> None:
    cache = BlobCache(tmp_path)
    with pytest.raises(DataLoss):
        await cache.fill(DIGEST, pieces(data), len(DATA))
    assert names_in(tmp_path) == set()


async def test_broken_download_leaves_nothing(tmp_path: Path) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        yield b"weig"
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await BlobCache(tmp_path).fill(DIGEST, breaks(), len(DATA))
    assert names_in(tmp_path) == set()


@pytest.mark.parametrize("name", ["../../etc/passwd", "a" * 63, DIGEST.upper(), ""])
def test_only_digests_are_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid):
        BlobCache(tmp_path).read(name)


async def test_prunes_the_oldest_that_nobody_needs(tmp_path: Path) -> None:
    cache = BlobCache(tmp_path)
    digests = []
    for age, letter in enumerate(b"abcd"):
        data = bytes([letter]) * 100
        digest = hashlib.sha256(data).hexdigest()
        await cache.fill(digest, pieces(data), 100)
        os.utime(tmp_path / digest, (1000 + age, 1000 + age))
        digests.append(digest)
    cache.prune(lambda name: name == digests[0], 400)
    assert len(names_in(tmp_path)) == 4
    cache.prune(lambda name: name == digests[0], 250)
    assert names_in(tmp_path) == {digests[0], digests[3]}


def test_manifests_are_remembered_and_damaged_ones_forgotten(tmp_path: Path) -> None:
    manifests = ManifestCache(tmp_path)
    assert manifests.read(DIGEST) is None
    manifests.write(DIGEST, LISTED)
    assert ManifestCache(tmp_path).read(DIGEST) == LISTED
    written = (tmp_path / DIGEST).read_bytes()
    for place in range(0, len(written), 5):
        (tmp_path / DIGEST).write_bytes(written[:place] + bytes([written[place] ^ 4]) + written[place + 1 :])
        assert manifests.read(DIGEST) is None
    manifests.prune(lambda name: False)
    assert names_in(tmp_path) == set()


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomically(tmp_path / "f", b"old")

    def full(handle: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomically(tmp_path / "f", b"new")
    assert names_in(tmp_path) == {"f"}
    assert (tmp_path / "f").read_bytes() == b"old"
