"""Artifacts are named by their content, listed in order, and protected by references."""

import pytest

from tests.support.shelf import Shelf, digest
from tidemill import errors
from tidemill.artifacts.manifests import File


async def test_the_same_content_is_the_same_artifact(shelf: Shelf) -> None:
    await shelf.put("a", "bb")
    one = await shelf.create("a", "bb")
    two = await shelf.create("bb", "a")
    assert one == two
    assert [(file.path, file.size) for file in one.manifest.files] == [("a", 1), ("bb", 2)]
    assert one.manifest.size == 3
    assert await shelf.catalog.get(one.digest) == one
    assert (await shelf.create("a", "bb", kind="dataset")).digest != one.digest


async def test_a_blob_that_is_missing_is_named(shelf: Shelf) -> None:
    await shelf.put("a")
    with pytest.raises(errors.FailedPrecondition) as missing:
        await shelf.create("a", "b")
    assert (missing.value.reason, missing.value.metadata["sha256"]) == ("BLOB_MISSING", digest("b"))
    assert await shelf.artifacts() == {}
    await shelf.blobs.delete(digest("a"))


async def test_a_listed_blob_cannot_be_deleted(shelf: Shelf) -> None:
    await shelf.put("a")
    artifact = await shelf.create("a")
    with pytest.raises(errors.FailedPrecondition) as used:
        await shelf.blobs.delete(digest("a"))
    assert (used.value.reason, used.value.metadata["artifact"]) == ("BLOB_IN_USE", artifact.digest)
    await shelf.catalog.delete(artifact.digest)
    with pytest.raises(errors.NotFound):
        await shelf.blobs.delete(digest("a"))


async def test_deletion_takes_only_blobs_that_nobody_else_lists(shelf: Shelf) -> None:
    await shelf.put("a", "b", "c", "free")
    one, two = await shelf.create("a", "b"), await shelf.create("b", "c")
    await shelf.catalog.delete(one.digest)
    assert await shelf.keys("blobs") == {digest("b"), digest("c"), digest("free")}
    await shelf.check()
    await shelf.catalog.delete(two.digest)
    assert await shelf.keys("blobs") == {digest("free")}
    for area in ("manifests", "uses", "deletions", "references"):
        assert await shelf.keys(area) == set()
    with pytest.raises(errors.NotFound):
        await shelf.catalog.delete(one.digest)


async def test_references_protect(shelf: Shelf) -> None:
    await shelf.put("a")
    artifact = await shelf.create("a", reference="models/m/versions/1")
    assert artifact.references == ("models/m/versions/1",)
    for _ in range(2):
        added = await shelf.catalog.add_reference(artifact.digest, "jobs/j")
        assert added.references == ("jobs/j", "models/m/versions/1")
    with pytest.raises(errors.FailedPrecondition) as needed:
        await shelf.catalog.delete(artifact.digest)
    assert (needed.value.reason, needed.value.metadata["reference"]) == ("ARTIFACT_REFERENCED", "jobs/j")
    for reference in ("jobs/j", "models/m/versions/1", "jobs/never-added"):
        for _ in range(2):
            left = await shelf.catalog.remove_reference(artifact.digest, reference)
    assert left.references == ()
    await shelf.catalog.delete(artifact.digest)
    for work in (
        shelf.catalog.get(artifact.digest),
        shelf.catalog.add_reference(artifact.digest, "jobs/j"),
        shelf.catalog.remove_reference(artifact.digest, "jobs/j"),
    ):
        with pytest.raises(errors.NotFound):
            await work


@pytest.mark.parametrize("reference", ["", "/", "../x", "jobs/..", "a b", "x" * 129, "/".join(["a" * 100] * 8)])
async def test_references_are_resource_names(shelf: Shelf, reference: str) -> None:
    await shelf.put("a")
    artifact = await shelf.create("a")
    with pytest.raises(errors.Invalid):
        await shelf.catalog.add_reference(artifact.digest, reference)


async def test_references_are_bounded(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.artifacts.catalog.MAX_REFERENCES", 3)
    await shelf.put("a")
    artifact = await shelf.create("a")
    for number in range(3):
        await shelf.catalog.add_reference(artifact.digest, f"jobs/{number}")
    await shelf.catalog.add_reference(artifact.digest, "jobs/1")
    with pytest.raises(errors.Exhausted):
        await shelf.catalog.add_reference(artifact.digest, "jobs/4")


async def test_lists_are_paged_by_digest_and_filtered_by_kind(shelf: Shelf) -> None:
    texts = [f"text {number}" for number in range(25)]
    names = [f"file{number}" for number in range(25)]
    await shelf.put(*texts)
    made = {}
    for number, text in enumerate(texts):
        kind = "model" if number % 3 else "dataset"
        files = [File(names[number], digest(text), 0)]
        made[(await shelf.catalog.create(kind, files, {})).digest] = kind
    for kind in ("", "model", "dataset", "logs"):
        found: list[str] = []
        after, pages = "", 0
        while pages == 0 or after:
            page, after = await shelf.catalog.page(after, 7, kind)
            assert len(page) <= 7
            found += [artifact.digest for artifact in page]
            pages += 1
        assert found == sorted(each for each, its in made.items() if kind in ("", its))
        assert pages == 4


async def test_large_artifacts_make_short_pages(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tidemill.artifacts.catalog.PAGE_BYTES", 1)
    await shelf.put("a")
    for number in range(20):
        await shelf.catalog.create("model", [File(f"f{number}", digest("a"), 0)], {})
    found, after = await shelf.catalog.page("", 20)
    assert len(found) == 1
    while after:
        page, after = await shelf.catalog.page(after, 20)
        found += page
    assert [artifact.digest for artifact in found] == sorted(await shelf.keys("manifests"))


async def test_a_damaged_manifest_is_data_loss_hides_no_other_and_is_mended(shelf: Shelf) -> None:
    await shelf.put("a", "b")
    damaged, fine = await shelf.create("a"), await shelf.create("b")
    path = shelf.folder / "objects" / "manifests" / damaged.digest[:2] / damaged.digest
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b"model", b"modem"))
    with pytest.raises(errors.DataLoss):
        await shelf.catalog.get(damaged.digest)
    assert set(await shelf.artifacts()) == {fine.digest}
    with pytest.raises(errors.FailedPrecondition):
        await shelf.blobs.delete(digest("a"))
    again = await shelf.create("a")
    assert (again.digest, again.manifest) == (damaged.digest, damaged.manifest)
