"""Shared memory of clients: only what they named, and never beyond its end."""

import os
from pathlib import Path

import pytest

from tidemill.errors import AlreadyExists, Exhausted, Invalid, NotFound
from tidemill.inference.sharedmemory.regions import Regions
from tidemill.inference.sharedmemory.system import SystemMemory


@pytest.fixture
def regions() -> Regions:
    return Regions()


@pytest.fixture
def memory(tmp_path: Path, regions: Regions) -> SystemMemory:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "object").write_bytes(bytes(range(64)))
    (tmp_path / "secret").write_bytes(bytes(64))
    return SystemMemory(regions, str(tmp_path / "folder"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_reads_and_writes_its_part(memory: SystemMemory, regions: Regions, tmp_path: Path) -> None:
    memory.register("r", "/object", 16, 32)
    with regions.use("r") as region:
        assert region.read(4, 3) == bytes([20, 21, 22])
        region.write(0, b"abc")
        assert region.read(0, 0) == b""
    assert (tmp_path / "folder" / "object").read_bytes()[15:20] == b"\x0fabc\x13"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "/",
        "//object",
        "/a/object",
        "..",
        "/..",
        ".",
        "/.",
        "../secret",
        "/../secret",
        "object/",
        "obj\0ect",
        "object\n",
        "o" * 256,
        "gr\u00fc\u00df",
        "/missing",
        "link",
        "pipe",
        "sub",
        "%2e%2e",
    ],
)
def test_opens_nothing_else(memory: SystemMemory, regions: Regions, tmp_path: Path, key: str) -> None:
    folder = tmp_path / "folder"
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    before = descriptors()
    with pytest.raises(Invalid, match="Unable to open shared memory region") as refused:
        memory.register("r", key, 0, 1)
    assert str(tmp_path) not in refused.value.message
    assert regions.find("system") == []
    assert descriptors() == before


@pytest.mark.parametrize("key", ["tidemill-abc", "/tidemill_1", "Tidemill"])
def test_the_servers_own_objects_are_out_of_reach(memory: SystemMemory, tmp_path: Path, key: str) -> None:
    (tmp_path / "folder" / key.removeprefix("/")).write_bytes(bytes(8))
    with pytest.raises(Invalid, match="are reserved"):
        memory.register("r", key, 0, 8)


@pytest.mark.parametrize(
    ("offset", "size", "text"),
    [
        (0, 65, "failed to register shared memory region 'r': invalid args"),
        (64, 1, "failed to register shared memory region 'r': invalid args"),
        (2**63, 1, "failed to register shared memory region 'r': invalid args"),
        (0, 0, "failed to register shared memory region 'r': invalid args"),
        (32, 2**64 - 32, "Integer overflow detected: byte_size (18446744073709551584) + offset (32) exceeds"),
    ],
)
def test_regions_lie_within_their_object(memory: SystemMemory, offset: int, size: int, text: str) -> None:
    before = descriptors()
    with pytest.raises(Invalid) as refused:
        memory.register("r", "object", offset, size)
    assert refused.value.message.startswith(text)
    assert descriptors() == before


@pytest.mark.parametrize(
    ("offset", "size", "text"),
    [
        (32, 0, "Invalid offset for shared memory region: 'r'"),
        (-1, 1, "Invalid offset for shared memory region: 'r'"),
        (16, 17, "Invalid offset + byte size for shared memory region: 'r'"),
        (0, 2**64, "Invalid offset + byte size for shared memory region: 'r'"),
    ],
)
def test_uses_lie_within_their_region(
    memory: SystemMemory, regions: Regions, offset: int, size: int, text: str
) -> None:
    memory.register("r", "object", 0, 32)
    with regions.use("r") as region, pytest.raises(Invalid) as refused:
        region.check(offset, size)
    assert refused.value.message == text


def test_an_object_that_has_shrunk_is_an_error_and_is_not_made_longer(
    memory: SystemMemory, regions: Regions, tmp_path: Path
) -> None:
    memory.register("r", "object", 0, 64)
    os.truncate(tmp_path / "folder" / "object", 8)
    with regions.use("r") as region:
        for use in (lambda: region.read(0, 64), lambda: region.write(0, bytes(64))):
            with pytest.raises(Invalid, match="is shorter than it was"):
                use()
        assert region.read(0, 8) == bytes(range(8))
    assert (tmp_path / "folder" / "object").stat().st_size == 8


def test_a_region_that_is_in_use_is_closed_when_it_is_not(memory: SystemMemory, regions: Regions) -> None:
    before = descriptors()
    memory.register("r", "object", 0, 64)
    with regions.use("r") as region:
        regions.remove("system", "r")
        with pytest.raises(NotFound):
            regions.use("r")
        memory.register("r", "object", 32, 8)
        assert region.read(0, 1) == b"\0"
    assert descriptors() == before + 1
    regions.close()
    assert descriptors() == before


def test_names_are_taken_once_and_bounded(memory: SystemMemory) -> None:
    memory.register("r", "object", 0, 64)
    with pytest.raises(AlreadyExists) as taken:
        memory.register("r", "object", 0, 64)
    assert taken.value.message == "shared memory region 'r' already in manager"
    for name in ("", "x" * 257, "a\nb"):
        with pytest.raises(Invalid):
            memory.register(name, "object", 0, 64)


def test_there_are_only_so_many(tmp_path: Path) -> None:
    (tmp_path / "object").write_bytes(bytes(8))
    regions = Regions(limit=2)
    memory = SystemMemory(regions, str(tmp_path))
    for name in ("a", "b"):
        memory.register(name, "object", 0, 8)
    with pytest.raises(Exhausted, match="at most 2"):
        memory.register("c", "object", 0, 8)
    regions.close()


def test_status_and_unregistering(memory: SystemMemory, regions: Regions) -> None:
    for name in ("a", "b"):
        memory.register(name, "object", 0, 64)
    assert [region.name for region in regions.find("system")] == ["a", "b"]
    assert [region.name for region in regions.find("system", "b")] == ["b"]
    with pytest.raises(NotFound) as missing:
        regions.find("system", "c")
    assert missing.value.message == "Unable to find system shared memory region: 'c'"
    with pytest.raises(NotFound) as unknown:
        regions.use("c")
    assert unknown.value.message == "Unable to find shared memory region: 'c'"
    regions.remove("system", "c")
    regions.remove("cuda")
    regions.remove("system", "a")
    assert [region.name for region in regions.find("system")] == ["b"]
    regions.remove("system")
    assert regions.find("system") == []
