"""No blob that an artifact lists ever vanishes: not by deletion, not by a race, not by a crash at any write."""

import asyncio
import random
from typing import TypeVar

import pytest

from tests.support.shelf import Shelf, digest
from tidemill import errors
from tidemill.artifacts import keys

T = TypeVar("T")


@pytest.mark.parametrize("applied", [False, True])
async def test_a_crash_at_any_write_of_a_creation(shelf: Shelf, applied: bool) -> None:
    for fail_at in range(1, 20):
        shelf.restart()
        await shelf.put("a", "b", "c")
        first = await shelf.create("a", "b", reference="jobs/first")
        shelf.restart()
        shelf.store.fail_at, shelf.store.applied = fail_at, applied
        try:
            await shelf.create("b", "c", reference="jobs/second")
            crashed = False
        except errors.Unavailable:
            crashed = True
        shelf.restart()
        await shelf.check()
        second = await shelf.create("b", "c", reference="jobs/second")
        assert second.references == ("jobs/second",)
        await shelf.check()
        for artifact, reference in ((first, "jobs/first"), (second, "jobs/second")):
            await shelf.catalog.remove_reference(artifact.digest, reference)
            await shelf.catalog.delete(artifact.digest)
        await nothing_left(shelf)
        if not crashed:
            assert fail_at > 4, "the creation makes more writes than that"
            return
    raise AssertionError("the creation never succeeded")


@pytest.mark.parametrize("applied", [False, True])
async def test_marks_of_a_creation_that_crashed_protect_nothing(shelf: Shelf, applied: bool) -> None:
    for fail_at in (1, 2, 3):
        await shelf.put("a", "b")
        shelf.restart()
        shelf.store.fail_at, shelf.store.applied = fail_at, applied
        with pytest.raises(errors.Unavailable):
            await shelf.create("a", "b")
        shelf.restart()
        if not await shelf.artifacts():
            await shelf.blobs.delete(digest("a"))
            await shelf.blobs.delete(digest("b"))
        else:
            assert (fail_at, applied) == (3, True)
            await shelf.check()
            await shelf.catalog.delete(next(iter(await shelf.artifacts())))
        await nothing_left(shelf)


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("mend", ["repeat", "maintenance", "create again"])
async def test_a_crash_at_any_write_of_a_deletion(shelf: Shelf, applied: bool, mend: str) -> None:
    for fail_at in range(1, 20):
        shelf.restart()
        await shelf.put("a", "b", "c")
        first, second = await shelf.create("a", "b"), await shelf.create("b", "c")
        shelf.restart()
        shelf.store.fail_at, shelf.store.applied = fail_at, applied
        try:
            await shelf.catalog.delete(first.digest)
            crashed = False
        except errors.Unavailable:
            crashed = True
        shelf.restart()
        await shelf.check()
        assert second.digest in await shelf.artifacts()
        if mend == "repeat":
            await delete_if_there(shelf, first.digest)
        elif mend == "maintenance":
            await shelf.catalog.finish_deletions()
            assert await shelf.keys("deletions") == set()
            await shelf.check()
            await delete_if_there(shelf, first.digest)
        else:
            await shelf.put("a", "b")
            await shelf.create("a", "b")
            await shelf.catalog.finish_deletions()
            await shelf.check()
            await shelf.catalog.delete(first.digest)
        assert await shelf.keys("blobs") == {digest("b"), digest("c")}
        await shelf.check()
        await shelf.catalog.delete(second.digest)
        await nothing_left(shelf)
        if not crashed:
            assert fail_at > 5, "the deletion makes more writes than that"
            return
    raise AssertionError("the deletion never succeeded")


async def delete_if_there(shelf: Shelf, artifact: str) -> None:
    try:
        await shelf.catalog.delete(artifact)
    except errors.NotFound:
        assert artifact not in await shelf.artifacts()


async def nothing_left(shelf: Shelf) -> None:
    for area in ("blobs", "manifests", "uses", "references", "deletions"):
        assert await shelf.keys(area) == set(), area


async def test_creations_and_deletions_at_the_same_time(shelf: Shelf) -> None:
    chance = random.Random(7)
    shelf.store.dawdling = chance
    texts = ["a", "b", "c", "d"]

    async def upload() -> None:
        await shelf.put(chance.choice(texts))

    async def create() -> None:
        await shelf.create(*chance.sample(texts, 2))

    async def delete_blob() -> None:
        await shelf.blobs.delete(digest(chance.choice(texts)))

    async def delete_artifact() -> None:
        artifacts = list(await shelf.artifacts())
        if artifacts:
            await shelf.catalog.delete(chance.choice(artifacts))

    async def work() -> None:
        for _ in range(6):
            try:
                await chance.choice((upload, create, create, delete_blob, delete_blob, delete_artifact))()
            except (errors.NotFound, errors.FailedPrecondition):
                continue

    for _ in range(3):
        await shelf.put(*texts)
        await create()
        await asyncio.gather(*(work() for _ in range(8)))
        await shelf.check()


async def settled(task: "asyncio.Future[T]") -> bool:
    """Whether a task ends although what it may have to wait for is held up."""
    done, _ = await asyncio.wait([task], timeout=0.2)
    return bool(done)


async def test_a_deletion_waits_for_the_creation_that_lists_the_blob(shelf: Shelf) -> None:
    await shelf.put("a")
    expected = await shelf.create("a")
    await shelf.catalog.delete(expected.digest)
    await shelf.put("a")
    gate = shelf.store.hold("put_small", keys.use(digest("a"), expected.digest))
    creation = asyncio.ensure_future(shelf.create("a"))
    await gate.reached.wait()  # the blob was seen, and is not marked yet
    deletion = asyncio.ensure_future(shelf.blobs.delete(digest("a")))
    assert not await settled(deletion)
    gate.open.set()
    await creation
    with pytest.raises(errors.FailedPrecondition):
        await deletion
    await shelf.check()


@pytest.mark.parametrize("gives_up", [False, True])
async def test_a_creation_waits_for_the_deletion_of_its_blob(shelf: Shelf, gives_up: bool) -> None:
    await shelf.put("a")
    gate = shelf.store.hold("delete", keys.blob(digest("a")))
    deletion = asyncio.ensure_future(shelf.blobs.delete(digest("a")))
    await gate.reached.wait()  # nobody lists it: it is about to go
    if gives_up:
        deletion.cancel()
    creation = asyncio.ensure_future(shelf.create("a"))
    assert not await settled(creation)
    gate.open.set()
    with pytest.raises(errors.FailedPrecondition):
        await creation
    await asyncio.gather(deletion, return_exceptions=True)
    assert await shelf.artifacts() == {}


async def test_an_upload_waits_for_the_deletion_of_the_same_blob(shelf: Shelf) -> None:
    await shelf.put("a")
    artifact = await shelf.create("a")
    gate = shelf.store.hold("delete", keys.blob(digest("a")))
    deletion = asyncio.ensure_future(shelf.catalog.delete(artifact.digest))
    await gate.reached.wait()
    upload = asyncio.ensure_future(shelf.put("a"))
    assert not await settled(upload)
    gate.open.set()
    await asyncio.gather(deletion, upload)
    assert await shelf.keys("blobs") == {digest("a")}


async def test_a_reference_waits_for_the_deletion_of_its_artifact(shelf: Shelf) -> None:
    await shelf.put("a")
    artifact = await shelf.create("a")
    gate = shelf.store.hold("delete", keys.manifest(artifact.digest))
    deletion = asyncio.ensure_future(shelf.catalog.delete(artifact.digest))
    await gate.reached.wait()
    reference = asyncio.ensure_future(shelf.catalog.add_reference(artifact.digest, "jobs/j"))
    assert not await settled(reference)
    gate.open.set()
    await deletion
    with pytest.raises(errors.NotFound):
        await reference
    await nothing_left(shelf)
