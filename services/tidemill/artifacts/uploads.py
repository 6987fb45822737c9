"""Uploads in work: staged on the local disk, resumable, verified, then made blobs."""

import asyncio
import logging
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from tidemill import errors, names
from tidemill.artifacts.blobs import Blob, Blobs
from tidemill.artifacts.metrics import Metrics
from tidemill.artifacts.sections import Sections
from tidemill.artifacts.spool import Record, Spool
from tidemill.clock import Clock

LOG = logging.getLogger(__name__)
T = TypeVar("T")
THREADS = 8
CHUNK = 1 << 20
"""Largest chunk of an upload, in bytes."""
UNTOUCHED = 5.0
"""Seconds after which an upload without a byte makes room for another, where the limit of uploads is reached."""
REMEMBERED = 1024
"""Finished uploads that are remembered, so that a lost answer can be asked for again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds of what uploads may take; sizes in bytes, times in seconds.

    An upload is given up `idle` seconds after it was last heard of, or after `start` seconds without its first byte.
    """

    blob_bytes: int
    uploads: int
    idle: float
    start: float
    writer_stall: float
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Upload:
    """How far an upload is. `expires` is in seconds since the epoch."""

    id: str
    sha256: str
    size: int
    offset: int
    complete: bool
    expires: float


class _Active:
    """An upload in work."""

    def __init__(self, identifier: str, spool: Spool, heard: float) -> None:
        self.id = identifier
        self.spool = spool
        self.heard = heard
        """When it was last heard of, in seconds of the monotonic clock; without a byte, when it began."""
        self.writer: Writer | None = None

    @property
    def sha256(self) -> str:
        return self.spool.record.sha256

    @property
    def size(self) -> int:
        return self.spool.record.size


class Uploads:
    """The uploads of one data directory.

    Args:
        folder: for the staged bytes; made if it is not there.
        blobs: what they become.
    """

    def __init__(
        self, folder: Path, blobs: Blobs, sections: Sections, limits: Limits, clock: Clock, metrics: Metrics
    ) -> None:
        self._folder = folder
        self._blobs = blobs
        self._sections = sections
        self._limits = limits
        self._clock = clock
        self._metrics = metrics
        self._active: dict[str, _Active] = {}
        self._creating = asyncio.Lock()
        self._complete: OrderedDict[str, Blob] = OrderedDict()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="uploads")

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def start(self) -> None:
        """Take up what an earlier process left."""
        for spool_id, spool in await self._run(self._load):
            silent = max(0.0, self._clock.now() - spool.record.touched)
            self._active[spool_id] = _Active(spool_id, spool, self._clock.monotonic() - silent)

    def _load(self) -> list[tuple[str, Spool]]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = []
        for path in sorted(self._folder.glob("*.json")):
            spool = Spool.load(self._folder, path.stem)
            if spool is not None:
                found.append((path.stem, spool))
        known = {identifier for identifier, _ in found}
        for path in self._folder.iterdir():
            if path.is_file() and (path.suffix == ".new" or path.stem not in known):
                path.unlink()
        return found

    async def create(self, sha256: str, size: int) -> Upload:
        """A new upload; complete at once when there is such a blob.

        Raises:
            Invalid: no digest, a size that is negative, or not that of the blob with this digest.
            Exhausted: with reason BLOB_TOO_LARGE, TOO_MANY_UPLOADS or DISK_FULL.
        """
        names.check_digest(sha256, "sha256")
        if size < 0:
            raise errors.invalid("size", "must not be negative")
        if size > self._limits.blob_bytes:
            raise errors.Exhausted(
                f"a blob has at most {self._limits.blob_bytes} bytes, not {size}",
                reason="BLOB_TOO_LARGE",
                metadata={"limit": str(self._limits.blob_bytes)},
            )
        identifier = secrets.token_hex(16)
        blob = await self._blobs.announced(sha256, size)
        if blob is not None:
            self._metrics.deduplicated.inc()
            return self._completed(identifier, blob)
        record = Record(sha256, size, 0, self._clock.now())
        async with self._creating:  # nobody else takes the room that was just found
            await self._check_room(size)
            spool = await self._run(lambda: Spool.create(self._folder, identifier, record))
            active = _Active(identifier, spool, self._clock.monotonic())
            self._active[identifier] = active
        return self._describe(active)

    async def _check_room(self, size: int) -> None:
        if len(self._active) >= self._limits.uploads:
            await self._make_room()
        if len(self._active) >= self._limits.uploads:
            raise errors.Exhausted(
                f"{len(self._active)} uploads are in work already", reason="TOO_MANY_UPLOADS", retry_after=5
            )
        # What others have announced takes no space before it comes: an announcement costs nothing.
        await self._run(lambda: self._check_disk(size))

    async def _make_room(self) -> None:
        """Give up the upload that has waited longest for its first byte, if there is one."""
        latest = self._clock.monotonic() - UNTOUCHED
        waiting = [active for active in self._active.values() if active.spool.offset == 0 and active.heard < latest]
        if waiting:
            await self._give_up(min(waiting, key=lambda active: active.heard), lambda active: active.spool.offset == 0)

    def _check_disk(self, size: int) -> None:
        if size + self._limits.free_bytes > shutil.disk_usage(self._folder).free:
            raise errors.Exhausted("there is no space for these bytes", reason="DISK_FULL", retry_after=60)

    def _deadline(self, active: _Active) -> float:
        """When an upload is given up, in seconds of the monotonic clock."""
        limit = self._limits.idle if active.spool.offset else min(self._limits.start, self._limits.idle)
        return active.heard + limit

    def _completed(self, identifier: str, blob: Blob) -> Upload:
        self._complete[identifier] = blob
        while len(self._complete) > REMEMBERED:
            self._complete.popitem(last=False)
        return Upload(identifier, blob.sha256, blob.size, blob.size, True, self._clock.now() + self._limits.idle)

    def _describe(self, active: _Active) -> Upload:
        expires = self._clock.now() + self._deadline(active) - self._clock.monotonic()
        return Upload(active.id, active.sha256, active.size, active.spool.offset, False, expires)

    def _find(self, identifier: str) -> _Active:
        try:
            return self._active[identifier]
        except KeyError:
            raise errors.NotFound(
                f"there is no upload {identifier}: it is over, was given up, or never was", reason="UPLOAD_NOT_FOUND"
            ) from None

    def get(self, identifier: str) -> Upload:
        """How far an upload is. Raises NotFound."""
        blob = self._complete.get(identifier)
        return self._completed(identifier, blob) if blob else self._describe(self._find(identifier))

    def write(self, identifier: str) -> "Writer":
        """The right to append to an upload, until it is closed.

        Raises:
            NotFound: there is no such upload.
            FailedPrecondition: with reason UPLOAD_COMPLETE, or with UPLOAD_BUSY while somebody else appends. Who was
                silent for `writer_stall` seconds loses the right to who comes next.
        """
        if identifier in self._complete:
            raise errors.FailedPrecondition("the upload is complete", reason="UPLOAD_COMPLETE")
        active = self._find(identifier)
        now = self._clock.monotonic()
        if active.writer is not None and now - active.writer.heard < self._limits.writer_stall:
            raise errors.FailedPrecondition(
                "another call appends to this upload", reason="UPLOAD_BUSY", retry_after=self._limits.writer_stall
            )
        active.writer = Writer(self, active, now)
        return active.writer

    async def append(self, writer: "Writer", active: _Active, offset: int, data: bytes) -> None:
        """Append for `writer`, if it still may."""
        if active.writer is not writer:
            self._find(active.id)
            raise errors.Stale("another call took this upload over", reason="UPLOAD_TAKEN_OVER")
        if offset < 0:
            raise errors.invalid("offset", "must not be negative")
        if len(data) > CHUNK:
            raise errors.invalid("data", f"must have at most {CHUNK} bytes, not {len(data)}")
        writer.heard = self._clock.monotonic()
        now = self._clock.now()

        def write() -> int:
            new = offset + len(data) - active.spool.offset
            if new > 0:
                self._check_disk(new)
            return active.spool.append(offset, data, now)

        # A first byte, not an empty chunk, is what makes an upload one that is worth waiting for.
        active.heard = writer.heard if data else active.heard
        self._metrics.bytes_in.inc(await self._run(write))
        writer.heard = self._clock.monotonic()

    async def close_writer(self, writer: "Writer", active: _Active) -> Upload:
        """Make safe what arrived, and let others append."""
        now = self._clock.now()

        def end() -> None:
            active.spool.make_safe(now)
            active.spool.close()

        try:
            await self._run(end)
        finally:
            if active.writer is writer:
                active.writer = None
        return self._describe(active)

    async def finish(self, identifier: str) -> Blob:
        """Verify an upload and make it a blob; asked again, the same blob.

        Raises:
            NotFound: there is no such upload.
            FailedPrecondition: with reason UPLOAD_INCOMPLETE.
            DataLoss: with reason DIGEST_MISMATCH; the upload is gone.
            Unavailable: the store cannot be reached; the upload stays.
        """

        async def finish() -> Blob:
            if identifier in self._complete:
                return self._complete[identifier]
            active = self._find(identifier)
            if active.spool.offset < active.size:
                raise errors.FailedPrecondition(
                    f"{active.spool.offset} of {active.size} bytes have arrived",
                    reason="UPLOAD_INCOMPLETE",
                    metadata={"offset": str(active.spool.offset)},
                )
            found = await self._run(active.spool.digest)
            if found != active.sha256:
                await self._drop(active)
                raise errors.DataLoss(
                    f"the bytes have the digest {found}, not the announced one: start again",
                    reason="DIGEST_MISMATCH",
                    metadata={"sha256": found},
                )
            blob = await self._blobs.put(active.sha256, active.size, active.spool.path)
            self._completed(identifier, blob)
            await self._drop(active)
            return blob

        return await self._sections.run([f"uploads/{identifier}"], finish)

    async def abort(self, identifier: str) -> None:
        """Give an upload up. Raises NotFound."""

        async def abort() -> None:
            if self._complete.pop(identifier, None) is None:
                await self._drop(self._find(identifier))

        await self._sections.run([f"uploads/{identifier}"], abort)

    async def _drop(self, active: _Active) -> None:
        self._active.pop(active.id, None)
        active.writer = None
        await self._run(active.spool.remove)

    async def expire(self) -> None:
        """Give up the uploads that were idle for too long."""

        def late(active: _Active) -> bool:
            return self._deadline(active) <= self._clock.monotonic()

        for active in list(self._active.values()):
            if late(active):
                await self._give_up(active, late)

    async def _give_up(self, active: _Active, condition: Callable[[_Active], bool]) -> None:
        """Drop an upload, if it is still in work and meets the condition when nobody finishes it."""

        async def give_up() -> None:
            if self._active.get(active.id) is active and condition(active):
                LOG.info("an idle upload is given up", extra={"upload": active.id, "offset": active.spool.offset})
                await self._drop(active)

        await self._sections.run([f"uploads/{active.id}"], give_up)

    async def close(self) -> None:
        """Make safe what arrived, for the next process."""
        now = self._clock.now()
        for active in self._active.values():
            try:
                await self._run(partial(active.spool.make_safe, now))
            except errors.TidemillError as error:
                LOG.warning("an upload will go on a little earlier: %s", error.message, extra={"upload": active.id})
            await self._run(active.spool.close)
        await asyncio.to_thread(self._threads.shutdown)


class Writer:
    """One call that appends to an upload."""

    def __init__(self, uploads: Uploads, active: _Active, heard: float) -> None:
        self._uploads = uploads
        self._active = active
        self.heard = heard
        """When it last sent something, in seconds of the monotonic clock."""

    async def append(self, offset: int, data: bytes) -> None:
        """Append `data`, which begins at `offset` of the whole; what is known already is skipped.

        Raises:
            Invalid: a negative offset, or more than `CHUNK` bytes.
            OutOfRange: with reason UPLOAD_GAP or BEYOND_SIZE.
            Stale: with reason UPLOAD_TAKEN_OVER, after a long silence.
            NotFound: the upload was given up meanwhile.
            Exhausted: with reason DISK_FULL; what had arrived before stays.
        """
        await self._uploads.append(self, self._active, offset, data)

    async def close(self) -> Upload:
        """Make safe what arrived, and let others append; how far the upload is."""
        return await self._uploads.close_writer(self, self._active)
