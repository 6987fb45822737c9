"""Blobs: immutable bytes, addressed by their SHA-256 and verified whenever they are read whole."""

import asyncio
import hashlib
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from tidemill import errors
from tidemill.artifacts import keys
from tidemill.artifacts.metrics import Metrics
from tidemill.artifacts.sections import Sections
from tidemill.artifacts.stores.base import Entry, Store

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob: its digest, its size in bytes, and when it became visible in seconds since the epoch."""

    sha256: str
    size: int
    created: float


class Blobs:
    """The blobs of a store.

    Args:
        store: keeps them.
        sections: the same as that of everybody else who adds or removes blobs and artifacts.
    """

    def __init__(self, store: Store, sections: Sections, metrics: Metrics) -> None:
        self._store = store
        self._sections = sections
        self._metrics = metrics
        self._damaged: set[str] = set()

    async def get(self, sha256: str) -> Blob:
        """Describe one blob. Raises NotFound."""
        try:
            return _blob(await self._store.stat(keys.blob(sha256)))
        except errors.NotFound as error:
            raise _missing(sha256) from error

    async def stored(self, sha256: str, size: int) -> Blob | None:
        """The blob if there is one, unless it is known to be damaged or has not this size."""
        if sha256 in self._damaged:
            return None
        try:
            blob = await self.get(sha256)
        except errors.NotFound:
            return None
        return blob if blob.size == size else None

    async def announced(self, sha256: str, size: int) -> Blob | None:
        """The blob if there is one, for somebody who says that it has this size; None also for one that is damaged.

        Raises:
            Invalid: the blob has another size; it was read to be sure that it is not damaged.
        """
        blob = await self.stored(sha256, size)
        if blob is not None or sha256 in self._damaged:
            return blob
        try:
            found = await self.get(sha256)
            async with aclosing(self._verified(sha256, self._store.get(keys.blob(sha256)))) as pieces:
                async for _ in pieces:
                    pass
        except (errors.NotFound, errors.DataLoss):
            return None
        raise errors.invalid("size", f"blob {sha256} has {found.size} bytes, not {size}")

    async def page(self, after: str, limit: int) -> list[Blob]:
        """At most `limit` blobs with a digest greater than `after`, in order of digest."""
        entries = await self._store.entries(keys.BLOBS, f"{keys.BLOBS}{after}", limit)
        return [_blob(entry) for entry in entries]

    async def put(self, sha256: str, size: int, source: Path) -> Blob:
        """Keep the file `source`, whose digest and size were verified, and which does not change any more."""

        async def put() -> Blob:
            blob = await self.stored(sha256, size)
            if blob is None:
                await self._store.put(keys.blob(sha256), source)
                self._damaged.discard(sha256)
                blob = await self.get(sha256)
            return blob

        return await self._sections.run([keys.blob(sha256)], put)

    async def read(self, sha256: str, offset: int = 0, limit: int = 0) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on, at most `limit` of them (0 = all).

        A blob that is read whole is verified on the way: its last piece comes only when all have the right digest, so
        nobody is handed a complete blob that is wrong. A part of a blob cannot be verified.

        Raises:
            NotFound: there is no such blob.
            OutOfRange: `offset` lies beyond the end.
            DataLoss: with reason BLOB_DAMAGED.
        """
        if offset < 0 or limit < 0:
            raise errors.invalid("offset" if offset < 0 else "limit", "must not be negative")
        size = (await self.get(sha256)).size
        if offset > size:
            raise errors.OutOfRange(
                f"offset {offset} lies beyond the end at {size}", metadata={"sha256": sha256, "size": str(size)}
            )
        length = min(limit, size - offset) if limit else size - offset
        async with aclosing(self._store.get(keys.blob(sha256), offset, length)) as pieces:
            verified = self._verified(sha256, pieces) if length == size else pieces
            async with aclosing(verified) as checked:
                async for piece in checked:
                    self._metrics.bytes_out.inc(len(piece))
                    yield piece

    async def _verified(self, sha256: str, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        found = hashlib.sha256()
        held = b""
        async for piece in pieces:
            await asyncio.to_thread(found.update, piece)
            if held:
                yield held
            held = piece
        if found.hexdigest() != sha256:
            self._damaged.add(sha256)
            self._metrics.damaged.inc()
            LOG.error("a stored blob is damaged", extra={"sha256": sha256})
            raise errors.DataLoss(
                f"the stored bytes of blob {sha256} have another digest; uploading it again mends it",
                reason="BLOB_DAMAGED",
                metadata={"sha256": sha256},
            )
        if held:
            yield held

    async def delete(self, sha256: str) -> None:
        """Delete a blob that no artifact lists.

        Raises:
            NotFound: there is no such blob.
            FailedPrecondition: with reason BLOB_IN_USE, naming an artifact.
        """

        async def delete() -> None:
            await self.get(sha256)
            artifact = await self.user(sha256)
            if artifact is not None:
                raise errors.FailedPrecondition(
                    f"artifact {artifact} lists blob {sha256}",
                    reason="BLOB_IN_USE",
                    metadata={"sha256": sha256, "artifact": artifact},
                )
            await self.remove(sha256)

        await self._sections.run([keys.blob(sha256)], delete)

    async def remove(self, sha256: str) -> None:
        """Delete a blob; the caller holds its section and has made sure that nobody uses it."""
        await self._store.delete(keys.blob(sha256))
        self._damaged.discard(sha256)

    async def user(self, sha256: str) -> str | None:
        """An artifact that lists the blob, if there is one; the caller holds the blob's section.

        Marks left by an artifact that was never finished, or whose deletion was not, are removed: whoever makes an
        artifact holds this section while its mark has no manifest.
        """
        after = ""
        while marks := await self._store.entries(keys.uses(sha256), after):
            for mark in marks:
                artifact = keys.last(mark.key)
                try:
                    await self._store.stat(keys.manifest(artifact))
                except errors.NotFound:
                    await self._store.delete(mark.key)
                else:
                    return artifact
            after = marks[-1].key
        return None


def _blob(entry: Entry) -> Blob:
    return Blob(keys.last(entry.key), entry.size, entry.modified)


def _missing(sha256: str) -> errors.NotFound:
    return errors.NotFound(f"there is no blob {sha256}", reason="BLOB_NOT_FOUND", metadata={"sha256": sha256})
