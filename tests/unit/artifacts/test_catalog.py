"""No blob that an artifact lists ever vanishes: not by deletion, not by a race, not by a crash at any write."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

import pytest
from prometheus_client import CollectorRegistry

from tests.support.artifacts import sha256
from tests.support.stores import FailingStore
from tidemill import errors
from tidemill.artifacts import keys
from tidemill.artifacts.blobs import Blobs
from tidemill.artifacts.catalog import Artifact, Catalog
from tidemill.artifacts.manifests import File
from tidemill.artifacts.metrics import Metrics
from tidemill.artifacts.sections import Sections
from tidemill.artifacts.stores.directory import DirectoryStore

T = TypeVar("T")


class World:
    """What a service keeps, over a store that may fail; `restart` is what a new process makes of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers = itertools.count()
        self.store = FailingStore(DirectoryStore(folder / "objects"))
        self.restart()

    def restart(self) -> None:
        self.store.fail_at = self.store.writes = 0
        sections = Sections()
        self.blobs = Blobs(self.store, sections, Metrics(CollectorRegistry()))
        self.catalog = Catalog(self.store, self.blobs, sections)

    def written(self, data: bytes) -> Path:
        path = self.folder / f"source {next(self.numbers)}"  # never again: a store may share the file
        path.write_bytes(data)
        return path

    async def put(self, *texts: str) -> None:
        for text in texts:
            data = text.encode()
            await self.blobs.put(sha256(data), len(data), self.written(data))

    async def create(self, *texts: str, kind: str = "model", reference: str = "") -> Artifact:
        files = [File(text, sha256(text.encode()), 0) for text in texts]
        return await self.catalog.create(kind, files, {}, reference)

    async def keys(self, area: str) -> set[str]:
        return {entry.key.split("/", 1)[1] for entry in await self.store.entries(f"{area}/")}

    async def artifacts(self) -> dict[str, Artifact]:
        found, after = {}, ""
        while True:
            page, after = await self.catalog.page(after, 1000)
            found.update({artifact.digest: artifact for artifact in page})
            if not after:
                return found

    async def check(self) -> None:
        """Every blob of every artifact is there, and protected."""
        for artifact in (await self.artifacts()).values():
            for file in artifact.manifest.files:
                assert (await self.blobs.get(file.sha256)).size == file.size
                with pytest.raises(errors.FailedPrecondition):
                    await self.blobs.delete(file.sha256)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path)
    await made.store.start()
    yield made
    await made.store.close()


def digest(text: str) -> str:
    return sha256(text.encode())


async def test_the_same_content_is_the_same_artifact(world: World) -> None:
    await world.put("a", "bb")
    one = await world.create("a", "bb")
    two = await world.create("bb", "a")
    assert one == two
    assert [(file.path, file.size) for file in one.manifest.files] == [("a", 1), ("bb", 2)]
    assert one.manifest.size == 3
    assert await world.catalog.get(one.digest) == one
    assert (await world.create("a", "bb", kind="dataset")).digest != one.digest


async def test_a_blob_that_is_missing_is_named(world: World) -> None:
    await world.put("a")
    with pytest.raises(errors.FailedPrecondition) as missing:
        await world.create("a", "b")
    assert (missing.value.reason, missing.value.metadata["sha256"]) == ("BLOB_MISSING", digest("b"))
    assert await world.artifacts() == {}
    await world.blobs.delete(digest("a"))


async def test_a_listed_blob_cannot_be_deleted(world: World) -> None:
    await world.put("a")
    artifact = await world.create("a")
    with pytest.raises(errors.FailedPrecondition) as used:
        await world.blobs.delete(digest("a"))
    assert (used.value.reason, used.value.metadata["artifact"]) == ("BLOB_IN_USE", artifact.digest)
    await world.catalog.delete(artifact.digest)
    with pytest.raises(errors.NotFound):
        await world.blobs.delete(digest("a"))


async def test_deletion_takes_only_blobs_that_nobody_else_lists(world: World) -> None:
    await world.put("a", "b", "c", "free")
    one, two = await world.create("a", "b"), await world.create("b", "c")
    await world.catalog.delete(one.digest)
    assert await world.keys("blobs") == {digest("b"), digest("c"), digest("free")}
    await world.check()
    await world.catalog.delete(two.digest)
    assert await world.keys("blobs") == {digest("free")}
    for area in ("manifests", "uses", "deletions", "references"):
        assert await world.keys(area) == set()
    with pytest.raises(errors.NotFound):
        await world.catalog.delete(one.digest)


async def test_references_protect(world: World) -> None:
    await world.put("a")
    artifact = await world.create("a", reference="models/m/versions/1")
    assert artifact.references == ("models/m/versions/1",)
    for _ in range(2):
        added = await world.catalog.add_reference(artifact.digest, "jobs/j")
        assert added.references == ("jobs/j", "models/m/versions/1")
    with pytest.raises(errors.FailedPrecondition) as needed:
        await world.catalog.delete(artifact.digest)
    assert (needed.value.reason, needed.value.metadata["reference"]) == ("ARTIFACT_REFERENCED", "jobs/j")
    for reference in ("jobs/j", "models/m/versions/1", "jobs/never-added"):
        for _ in range(2):
            left = await world.catalog.remove_reference(artifact.digest, reference)
    assert left.references == ()
    await world.catalog.delete(artifact.digest)
    for work in (
        world.catalog.get(artifact.digest),
        world.catalog.add_reference(artifact.digest, "jobs/j"),
        world.catalog.remove_reference(artifact.digest, "jobs/j"),
    ):
        with pytest.raises(errors.NotFound):
            await work


@pytest.mark.parametrize("reference", ["", "/", "../x", "jobs/..", "a b", "x" * 129, "/".join(["a" * 100] * 8)])
async def test_references_are_resource_names(world: World, reference: str) -> None:
    await world.put("a")
    artifact = await world.create("a")
    with pytest.raises(errors.Invalid):
        await world.catalog.add_reference(artifact.digest, reference)


async def test_references_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.artifacts.catalog.MAX_REFERENCES", 3)
    await world.put("a")
    artifact = await world.create("a")
    for number in range(3):
        await world.catalog.add_reference(artifact.digest, f"jobs/{number}")
    await world.catalog.add_reference(artifact.digest, "jobs/1")
    with pytest.raises(errors.Exhausted):
        await world.catalog.add_reference(artifact.digest, "jobs/4")


async def test_lists_are_paged_by_digest_and_filtered_by_kind(world: World) -> None:
    texts = [f"text {number}" for number in range(25)]
    names = [f"file{number}" for number in range(25)]
    await world.put(*texts)
    made = {}
    for number, text in enumerate(texts):
        kind = "model" if number % 3 else "dataset"
        files = [File(names[number], digest(text), 0)]
        made[(await world.catalog.create(kind, files, {})).digest] = kind
    for kind in ("", "model", "dataset", "logs"):
        found: list[str] = []
        after, pages = "", 0
        while pages == 0 or after:
            page, after = await world.catalog.page(after, 7, kind)
            assert len(page) <= 7
            found += [artifact.digest for artifact in page]
            pages += 1
        assert found == sorted(each for each, its in made.items() if kind in ("", its))
        assert pages == 4


async def test_large_artifacts_make_short_pages(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.artifacts.catalog.PAGE_BYTES", 1)
    await world.put("a")
    for number in range(20):
        await world.catalog.create("model", [File(f"f{number}", digest("a"), 0)], {})
    found, after = await world.catalog.page("", 20)
    assert len(found) == 1
    while after:
        page, after = await world.catalog.page(after, 20)
        found += page
    assert [artifact.digest for artifact in found] == sorted(await world.keys("manifests"))


async def test_a_damaged_manifest_is_data_loss_hides_no_other_and_is_mended(world: World) -> None:
    await world.put("a", "b")
    damaged, fine = await world.create("a"), await world.create("b")
    path = world.folder / "objects" / "manifests" / damaged.digest[:2] / damaged.digest
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"model", b"modem"))
    with pytest.raises(errors.DataLoss):
        await world.catalog.get(damaged.digest)
    assert set(await world.artifacts()) == {fine.digest}
    with pytest.raises(errors.FailedPrecondition):
        await world.blobs.delete(digest("a"))
    again = await world.create("a")
    assert (again.digest, again.manifest) == (damaged.digest, damaged.manifest)


@pytest.mark.parametrize("applied", [False, True])
async def test_a_crash_at_any_write_of_a_creation(world: World, applied: bool) -> None:
    for fail_at in range(1, 20):
        world.restart()
        await world.put("a", "b", "c")
        first = await world.create("a", "b", reference="jobs/first")
        world.restart()
        world.store.fail_at, world.store.applied = fail_at, applied
        try:
            await world.create("b", "c", reference="jobs/second")
            crashed = False
        except errors.Unavailable:
            crashed = True
        world.restart()
        await world.check()
        second = await world.create("b", "c", reference="jobs/second")
        assert second.references == ("jobs/second",)
        await world.check()
        for artifact, reference in ((first, "jobs/first"), (second, "jobs/second")):
            await world.catalog.remove_reference(artifact.digest, reference)
            await world.catalog.delete(artifact.digest)
        await nothing_left(world)
        if not crashed:
            assert fail_at > 4, "the creation makes more writes than that"
            return
    raise AssertionError("the creation never succeeded")


@pytest.mark.parametrize("applied", [False, True])
async def test_marks_of_a_creation_that_crashed_protect_nothing(world: World, applied: bool) -> None:
    for fail_at in (1, 2, 3):
        await world.put("a", "b")
        world.restart()
        world.store.fail_at, world.store.applied = fail_at, applied
        with pytest.raises(errors.Unavailable):
            await world.create("a", "b")
        world.restart()
        if not await world.artifacts():
            await world.blobs.delete(digest("a"))
            await world.blobs.delete(digest("b"))
        else:
            assert (fail_at, applied) == (3, True)
            await world.check()
            await world.catalog.delete(next(iter(await world.artifacts())))
        await nothing_left(world)


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("mend", ["repeat", "maintenance", "create again"])
async def test_a_crash_at_any_write_of_a_deletion(world: World, applied: bool, mend: str) -> None:
    for fail_at in range(1, 20):
        world.restart()
        await world.put("a", "b", "c")
        first, second = await world.create("a", "b"), await world.create("b", "c")
        world.restart()
        world.store.fail_at, world.store.applied = fail_at, applied
        try:
            await world.catalog.delete(first.digest)
            crashed = False
        except errors.Unavailable:
            crashed = True
        world.restart()
        await world.check()
        assert second.digest in await world.artifacts()
        if mend == "repeat":
            await delete_if_there(world, first.digest)
        elif mend == "maintenance":
            await world.catalog.finish_deletions()
            assert await world.keys("deletions") == set()
            await world.check()
            await delete_if_there(world, first.digest)
        else:
            await world.put("a", "b")
            await world.create("a", "b")
            await world.catalog.finish_deletions()
            await world.check()
            await world.catalog.delete(first.digest)
        assert await world.keys("blobs") == {digest("b"), digest("c")}
        await world.check()
        await world.catalog.delete(second.digest)
        await nothing_left(world)
        if not crashed:
            assert fail_at > 5, "the deletion makes more writes than that"
            return
    raise AssertionError("the deletion never succeeded")


async def delete_if_there(world: World, artifact: str) -> None:
    try:
        await world.catalog.delete(artifact)
    except errors.NotFound:
        assert artifact not in await world.artifacts()


async def nothing_left(world: World) -> None:
    for area in ("blobs", "manifests", "uses", "references", "deletions"):
        assert await world.keys(area) == set(), area


async def test_creations_and_deletions_at_the_same_time(world: World) -> None:
    chance = random.Random(7)
    world.store.dawdling = chance
    texts = ["a", "b", "c", "d"]

    async def upload() -> None:
        await world.put(chance.choice(texts))

    async def create() -> None:
        await world.create(*chance.sample(texts, 2))

    async def delete_blob() -> None:
        await world.blobs.delete(digest(chance.choice(texts)))

    async def delete_artifact() -> None:
        artifacts = list(await world.artifacts())
        if artifacts:
            await world.catalog.delete(chance.choice(artifacts))

    async def work() -> None:
        for _ in range(6):
            try:
                await chance.choice((upload, create, create, delete_blob, delete_blob, delete_artifact))()
            except (errors.NotFound, errors.FailedPrecondition):
                continue

    for _ in range(3):
        await world.put(*texts)
        await create()
        await asyncio.gather(*(work() for _ in range(8)))
        await world.check()


async def settled(task: "asyncio.Future[T]") -> bool:
    """Whether a task ends although what it may have to wait for is held up."""
    done, _ = await asyncio.wait([task], timeout=0.2)
    return bool(done)


async def test_a_deletion_waits_for_the_creation_that_lists_the_blob(world: World) -> None:
    await world.put("a")
    expected = await world.create("a")
    await world.catalog.delete(expected.digest)
    await world.put("a")
    gate = world.store.hold("put_small", keys.use(digest("a"), expected.digest))
    creation = asyncio.ensure_future(world.create("a"))
    await gate.reached.wait()  # the blob was seen, and is not marked yet
    deletion = asyncio.ensure_future(world.blobs.delete(digest("a")))
    assert not await settled(deletion)
    gate.open.set()
    await creation
    with pytest.raises(errors.FailedPrecondition):
        await deletion
    await world.check()


@pytest.mark.parametrize("gives_up", [False, True])
async def test_a_creation_waits_for_the_deletion_of_its_blob(world: World, gives_up: bool) -> None:
    await world.put("a")
    gate = world.store.hold("delete", keys.blob(digest("a")))
    deletion = asyncio.ensure_future(world.blobs.delete(digest("a")))
    await gate.reached.wait()  # nobody lists it: it is about to go
    if gives_up:
        deletion.cancel()
    creation = asyncio.ensure_future(world.create("a"))
    assert not await settled(creation)
    gate.open.set()
    with pytest.raises(errors.FailedPrecondition):
        await creation
    await asyncio.gather(deletion, return_exceptions=True)
    assert await world.artifacts() == {}


async def test_an_upload_waits_for_the_deletion_of_the_same_blob(world: World) -> None:
    await world.put("a")
    artifact = await world.create("a")
    gate = world.store.hold("delete", keys.blob(digest("a")))
    deletion = asyncio.ensure_future(world.catalog.delete(artifact.digest))
    await gate.reached.wait()
    upload = asyncio.ensure_future(world.put("a"))
    assert not await settled(upload)
    gate.open.set()
    await asyncio.gather(deletion, upload)
    assert await world.keys("blobs") == {digest("a")}


async def test_a_reference_waits_for_the_deletion_of_its_artifact(world: World) -> None:
    await world.put("a")
    artifact = await world.create("a")
    gate = world.store.hold("delete", keys.manifest(artifact.digest))
    deletion = asyncio.ensure_future(world.catalog.delete(artifact.digest))
    await gate.reached.wait()
    reference = asyncio.ensure_future(world.catalog.add_reference(artifact.digest, "jobs/j"))
    assert not await settled(reference)
    gate.open.set()
    await deletion
    with pytest.raises(errors.NotFound):
        await reference
    await nothing_left(world)
