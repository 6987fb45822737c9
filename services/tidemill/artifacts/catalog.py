"""Artifacts, and who needs them.

What makes it right after a crash at any point is the order of writes. An artifact exists while its manifest does.
Before a manifest is written, every blob in it is marked as used by the artifact; a mark whose artifact has no manifest
counts for nothing. A deletion is recorded, then the manifest goes, then marks and blobs; `finish_deletions` finishes
what a crash leaves. All of this happens in critical sections of the artifact and of each of its blobs.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tidemill import errors, names
from tidemill.artifacts import keys, manifests
from tidemill.artifacts.blobs import Blobs
from tidemill.artifacts.manifests import File, Manifest
from tidemill.artifacts.sections import Sections
from tidemill.artifacts.stores.base import Entry, Store

LOG = logging.getLogger(__name__)
S = TypeVar("S")
T = TypeVar("T")
MAX_REFERENCES = 1000
PARALLEL = 8
"""Requests to the store that one call makes at a time."""
PAGE = 1000
"""References that are listed at a time."""
PAGE_BYTES = 1 << 20
"""Manifests and references in one page, in bytes: a page must fit into a message."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact: its digest, its content, its references, sorted, and its creation in seconds since the epoch."""

    digest: str
    manifest: Manifest
    references: tuple[str, ...]
    created: float


@dataclass(frozen=True, slots=True)
class Held:
    """A reference as it is stored: the SHA-256 of its text, its artifact, and since when in seconds since the epoch."""

    artifact: str
    reference: str
    since: float


class Catalog:
    """The artifacts of a store."""

    def __init__(self, store: Store, blobs: Blobs, sections: Sections) -> None:
        self._store = store
        self._blobs = blobs
        self._sections = sections

    async def create(
        self, kind: str, files: Sequence[File], labels: Mapping[str, str], reference: str = ""
    ) -> Artifact:
        """The artifact with this content; made if it is new, and with `reference` if that is not empty.

        Raises:
            Invalid: the content breaks a rule.
            FailedPrecondition: with reason BLOB_MISSING, naming a blob that does not exist.
        """
        if reference:
            _check_reference(reference)
        manifest = await self._sized(manifests.check(kind, files, labels))
        data = manifests.encode(manifest)
        digest = manifests.digest(data)

        async def create() -> Artifact:
            if not await self._intact(digest, data):
                await _each(self._blob_size, manifest.blobs)
                await _each(lambda sha256: self._store.put_small(keys.use(sha256, digest), b""), manifest.blobs)
                await self._store.put_small(keys.manifest(digest), data)
            if reference:
                await self._refer(digest, reference)
            return await self._load(digest)

        return await self._sections.run(self._names(digest, manifest), create)

    def _names(self, digest: str, manifest: Manifest) -> list[str]:
        return [keys.manifest(digest), *(keys.blob(sha256) for sha256 in manifest.blobs)]

    async def _sized(self, manifest: Manifest) -> Manifest:
        sizes = dict(await _each(self._blob_size, manifest.blobs))
        files = tuple(File(file.path, file.sha256, sizes[file.sha256], file.media_type) for file in manifest.files)
        return Manifest(manifest.kind, files, manifest.labels)

    async def _blob_size(self, sha256: str) -> tuple[str, int]:
        try:
            return sha256, (await self._blobs.get(sha256)).size
        except errors.NotFound as error:
            raise errors.FailedPrecondition(
                f"there is no blob {sha256}: upload it first", reason="BLOB_MISSING", metadata={"sha256": sha256}
            ) from error

    async def _intact(self, digest: str, data: bytes) -> bool:
        """Whether the manifest is there; one that is damaged is taken away."""
        try:
            stored = await self._store.read_small(keys.manifest(digest))
        except errors.NotFound:
            return False
        if stored != data:
            LOG.error("a stored manifest is damaged: it is written again", extra={"artifact": digest})
            await self._store.delete(keys.manifest(digest))
        return stored == data

    async def _exists(self, digest: str) -> bool:
        return await self._stored(keys.manifest(digest))

    async def _stored(self, key: str) -> bool:
        try:
            await self._store.stat(key)
        except errors.NotFound:
            return False
        return True

    async def get(self, digest: str) -> Artifact:
        """One artifact.

        Raises:
            NotFound: with reason ARTIFACT_NOT_FOUND.
            DataLoss: its stored manifest is damaged.
        """
        names.check_digest(digest)
        return await self._load(digest)

    async def _load(self, digest: str) -> Artifact:
        try:
            entry = await self._store.stat(keys.manifest(digest))
            data = await self._store.read_small(entry.key)
        except errors.NotFound as error:
            raise _missing(digest) from error
        references = await self._references(digest)
        return Artifact(digest, manifests.decode(data, digest), references, entry.modified)

    async def _references(self, digest: str) -> tuple[str, ...]:
        entries = await self._store.entries(keys.references(digest), limit=MAX_REFERENCES)

        async def text(entry: Entry) -> list[str]:
            try:
                return [(await self._store.read_small(entry.key)).decode()]
            except errors.NotFound:  # taken back meanwhile
                return []

        found = await _each(text, entries)
        return tuple(sorted(reference for each in found for reference in each))

    async def page(self, after: str, limit: int, kind: str = "") -> tuple[list[Artifact], str]:
        """At most `limit` artifacts with a digest greater than `after`, in order, and where the next page begins after.

        A page may hold fewer, even none, when they are large or of other kinds; the list ends with the digest "".

        Raises:
            Invalid: no artifact can be of this kind.
        """
        if kind:
            names.check(kind, "kind")
        found: list[Artifact] = []
        size, last = 0, ""
        entries = await self._store.entries(keys.MANIFESTS, f"{keys.MANIFESTS}{after}", limit)
        for start in range(0, len(entries), PARALLEL):
            part = entries[start : start + PARALLEL]
            for entry, artifact in zip(part, await _each(self._found, part), strict=True):
                if artifact is not None and kind in ("", artifact.manifest.kind):
                    size += entry.size + sum(map(len, artifact.references))
                    if found and size > PAGE_BYTES:
                        return found, last
                    found.append(artifact)
                last = keys.last(entry.key)
        return found, last if len(entries) == limit else ""

    async def _found(self, entry: Entry) -> Artifact | None:
        try:
            return await self._load(keys.last(entry.key))
        except errors.NotFound:  # deleted meanwhile
            return None
        except errors.DataLoss as error:  # one of them must not hide all others
            LOG.error("%s", error.message)
            return None

    async def delete(self, digest: str) -> None:
        """Delete an artifact and those of its blobs that no other lists.

        Raises:
            NotFound: with reason ARTIFACT_NOT_FOUND.
            FailedPrecondition: with reason ARTIFACT_REFERENCED, naming a reference.
        """
        manifest, begun = await self._manifest(digest)

        async def delete() -> None:
            if await self._exists(digest):
                references = await self._references(digest)
                if references:
                    raise errors.FailedPrecondition(
                        f"{references[0]} needs artifact {digest}",
                        reason="ARTIFACT_REFERENCED",
                        metadata={"artifact": digest, "reference": references[0]},
                    )
                await self._store.put_small(keys.deletion(digest), manifests.encode(manifest))
                await self._store.delete(keys.manifest(digest))
            elif not begun or not await self._stored(keys.deletion(digest)):
                raise _missing(digest)
            await self._finish(digest, manifest)

        await self._sections.run(self._names(digest, manifest), delete)

    async def _manifest(self, digest: str) -> tuple[Manifest, bool]:
        """The manifest of an artifact, and whether its deletion has begun."""
        for key, begun in ((keys.manifest(digest), False), (keys.deletion(digest), True)):
            try:
                return manifests.decode(await self._store.read_small(key), digest), begun
            except errors.NotFound:
                continue
        raise _missing(digest)

    async def _finish(self, digest: str, manifest: Manifest) -> None:
        for sha256 in manifest.blobs:
            await self._store.delete(keys.use(sha256, digest))
            if await self._blobs.user(sha256) is None:
                await self._blobs.remove(sha256)
        await self._store.delete(keys.deletion(digest))

    async def finish_deletions(self) -> None:
        """Finish the deletions that a crash, or the store, interrupted."""
        for entry in await self._store.entries(keys.DELETIONS):
            digest = keys.last(entry.key)
            try:
                manifest = manifests.decode(await self._store.read_small(entry.key), digest)
            except errors.NotFound:  # finished meanwhile
                continue
            except errors.DataLoss as error:
                LOG.error("%s", error.message)
                continue
            await self._sections.run(self._names(digest, manifest), partial(self._resume, digest, manifest))

    async def _resume(self, digest: str, manifest: Manifest) -> None:
        if await self._exists(digest):  # made again since
            await self._store.delete(keys.deletion(digest))
        else:
            await self._finish(digest, manifest)

    async def add_reference(self, digest: str, reference: str) -> Artifact:
        """Record that `reference` needs the artifact; repeating it changes nothing.

        Raises:
            NotFound: with reason ARTIFACT_NOT_FOUND.
            Exhausted: with reason TOO_MANY_REFERENCES.
        """
        _check_reference(reference)

        async def add() -> Artifact:
            if not await self._exists(digest):
                raise _missing(digest)
            await self._refer(digest, reference)
            return await self._load(digest)

        return await self._sections.run([keys.manifest(digest)], add)

    async def _refer(self, digest: str, reference: str) -> None:
        known = await self._store.entries(keys.references(digest), limit=MAX_REFERENCES)
        key = keys.reference(digest, reference)
        if len(known) >= MAX_REFERENCES and key not in {entry.key for entry in known}:
            raise errors.Exhausted(
                f"artifact {digest} has {MAX_REFERENCES} references already", reason="TOO_MANY_REFERENCES"
            )
        await self._store.put_small(key, reference.encode())

    async def remove_reference(self, digest: str, reference: str) -> Artifact:
        """Take a reference back; repeating it changes nothing. Raises NotFound."""
        _check_reference(reference)

        async def remove() -> Artifact:
            if not await self._exists(digest):
                raise _missing(digest)
            await self._store.delete(keys.reference(digest, reference))
            return await self._load(digest)

        return await self._sections.run([keys.manifest(digest)], remove)

    async def held(self) -> AsyncGenerator[Held, None]:
        """All references to all artifacts, in order of key; those that come or go meanwhile may be missed."""
        after, more = "", True
        while more:
            entries = await self._store.entries(keys.REFERENCES, after, PAGE)
            for entry in entries:
                _, artifact, reference = entry.key.split("/")
                yield Held(artifact, reference, entry.modified)
                after = entry.key
            more = len(entries) == PAGE

    async def text(self, held: Held) -> str | None:
        """What a reference says; None when it was taken back meanwhile."""
        try:
            return (await self._store.read_small(f"{keys.references(held.artifact)}{held.reference}")).decode()
        except errors.NotFound:
            return None


def _check_reference(reference: str) -> None:
    names.check_path(reference, "reference")


def _missing(digest: str) -> errors.NotFound:
    return errors.NotFound(f"there is no artifact {digest}", reason="ARTIFACT_NOT_FOUND", metadata={"artifact": digest})


async def _each(work: Callable[[S], Awaitable[T]], items: Iterable[S]) -> list[T]:
    """What `work` gives for each of `items`, in their order, done `PARALLEL` at a time.

    After an error no more work is begun, and the error is raised when all that had begun is over: nothing that is done
    in a critical section outlasts it.
    """
    turns = asyncio.Semaphore(PARALLEL)
    problems: list[errors.TidemillError] = []

    async def one(item: S) -> list[T]:
        async with turns:
            if problems:
                return []
            try:
                return [await work(item)]
            except errors.TidemillError as problem:
                problems.append(problem)
                return []

    results = await asyncio.gather(*(one(item) for item in items))
    if problems:
        raise problems[0]
    return [result for each in results for result in each]
