"""Blobs on the local disk, named by their SHA-256 and verified on the very bytes that are given out."""

import hashlib
import logging
import os
import tempfile
from asyncio import to_thread
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tidemill import names
from tidemill.errors import DataLoss

LOG = logging.getLogger(__name__)


class BlobCache:
    """A directory of blobs. Several processes may share it.

    Args:
        directory: where they lie; made when it is not there.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def read(self, digest: str) -> bytes | None:
        """The bytes of a blob; None when it is not here. One whose bytes have changed is removed, and not here."""
        path = self._path(digest)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        if hashlib.sha256(data).hexdigest() != digest:
            LOG.error("a cached blob has changed on disk; it is removed", extra={"digest": digest})
            path.unlink(missing_ok=True)
            return None
        os.utime(path)
        return data

    async def fill(self, digest: str, chunks: AsyncIterator[bytes], limit: int) -> None:
        """Keep the blob whose bytes `chunks` gives.

        Raises:
            DataLoss: they are not the blob's, or more than `limit` bytes; nothing is kept then.
        """
        handle, temporary = tempfile.mkstemp(dir=self._directory, prefix=".new-")
        hashed, size = hashlib.sha256(), 0
        try:
            with os.fdopen(handle, "wb") as file:
                async for chunk in chunks:
                    size += len(chunk)
                    if size > limit:
                        raise DataLoss(f"blob {digest} has more bytes than announced", reason="DIGEST_MISMATCH")
                    hashed.update(chunk)
                    await to_thread(file.write, chunk)
            if hashed.hexdigest() != digest:
                raise DataLoss(f"what arrived for blob {digest} has another digest", reason="DIGEST_MISMATCH")
            # Not synced: a blob that a power cut tore is found out by its digest, and fetched again.
            os.replace(temporary, self._path(digest))
        except BaseException:
            _discard(Path(temporary))
            raise

    def prune(self, needed: Callable[[str], bool], limit: int) -> None:
        """Remove blobs that are not needed, those unused for longest first, until at most `limit` bytes are here."""
        found = []
        for path in self._directory.iterdir():
            try:
                status = path.stat()
            except FileNotFoundError:  # another process prunes at the same time
                continue
            found.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= limit:
                return
            if not needed(path.name):
                path.unlink(missing_ok=True)
                total -= size

    def _path(self, digest: str) -> Path:
        return self._directory / names.check_digest(digest)


def _discard(path: Path) -> None:
    path.unlink(missing_ok=True)
