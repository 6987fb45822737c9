"""The bytes of one upload while they arrive: a file, and a small record of how much of it is safe."""

import errno
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from tidemill import errors, names

SAFE_EVERY = 8 << 20
"""Bytes after which what has arrived is made to survive a power cut: no more than these are ever sent again."""
PIECE = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of an upload: its announced digest and size, its safe offset, and when it was heard of last."""

    sha256: str
    size: int
    offset: int
    touched: float


class Spool:
    """One upload on the local disk, `{id}.bytes` and `{id}.json`. Methods block, and may be called from any thread."""

    def __init__(self, folder: Path, identifier: str, record: Record) -> None:
        self._bytes = folder / f"{identifier}.bytes"
        self._record_path = folder / f"{identifier}.json"
        self._record = record
        self._lock = threading.Lock()
        self._file: int | None = None
        self._removed = False
        # What was received by an earlier process is hashed from the file, at the end.
        self._hash = hashlib.sha256() if record.offset == 0 else None
        self.offset = record.offset

    @classmethod
    def create(cls, folder: Path, identifier: str, record: Record) -> Self:
        """A new upload. Raises `Exhausted` when the disk is full."""
        spool = cls(folder, identifier, record)
        with _translated():
            spool._write_record(record)
        return spool

    @classmethod
    def load(cls, folder: Path, identifier: str) -> Self | None:
        """The upload that an earlier process left; None, and its files are gone, if they say nothing sensible."""
        try:
            content = json.loads((folder / f"{identifier}.json").read_bytes())
            record = Record(
                names.check_digest(content["sha256"]),
                int(content["size"]),
                int(content["offset"]),
                float(content["touched"]),
            )
            spool = cls(folder, identifier, record)
            if not 0 <= record.offset <= record.size or (record.offset and spool.path.stat().st_size < record.offset):
                raise ValueError("the bytes are not there")
            return spool
        except (OSError, ValueError, KeyError, TypeError, errors.Invalid):
            for name in (f"{identifier}.json", f"{identifier}.bytes"):
                (folder / name).unlink(missing_ok=True)
            return None

    @property
    def path(self) -> Path:
        """The file that holds the bytes."""
        return self._bytes

    @property
    def record(self) -> Record:
        """What was last made safe."""
        return self._record

    def append(self, offset: int, data: bytes, now: float) -> int:
        """Append `data`, which begins at `offset` of the whole; how many of its bytes were new.

        Raises:
            OutOfRange: with reason UPLOAD_GAP or BEYOND_SIZE.
            Exhausted: with reason DISK_FULL; what had arrived before stays.
        """
        with self._lock, _translated():
            known = self.offset - offset
            if known < 0:
                raise errors.OutOfRange(
                    f"offset {offset} leaves a gap: {self.offset} bytes have arrived",
                    reason="UPLOAD_GAP",
                    metadata={"offset": str(self.offset)},
                )
            if offset + len(data) > self._record.size:
                raise errors.OutOfRange(f"more bytes than the announced {self._record.size}", reason="BEYOND_SIZE")
            new = memoryview(data)[known:]
            if not new:
                return 0
            self._write(new)
            if self._hash is not None:
                self._hash.update(new)
            self.offset += len(new)
            if self.offset - self._record.offset >= SAFE_EVERY:
                self._make_safe(now)
            return len(new)

    def _write(self, data: memoryview) -> None:
        file = self._opened()
        done = 0
        while done < len(data):
            done += os.pwrite(file, data[done:], self.offset + done)

    def _opened(self) -> int:
        if self._removed:
            raise errors.NotFound("the upload is over", reason="UPLOAD_NOT_FOUND")
        if self._file is None:
            self._file = os.open(self._bytes, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self._file

    def make_safe(self, now: float) -> None:
        """Let everything that has arrived survive a power cut."""
        with self._lock, _translated():
            self._make_safe(now)

    def _make_safe(self, now: float) -> None:
        if self.offset > self._record.offset and not self._removed:
            os.fdatasync(self._opened())
            self._write_record(Record(self._record.sha256, self._record.size, self.offset, now))

    def _write_record(self, record: Record) -> None:
        temporary = self._record_path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(json.dumps(asdict(record)).encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._record_path)
        self._record = record

    def digest(self) -> str:
        """SHA-256 of all bytes that have arrived; the file exists afterwards, even if there were none."""
        with self._lock, _translated():
            file = self._opened()
            if self._hash is None:
                found = hashlib.sha256()
                for at in range(0, self.offset, PIECE):
                    found.update(os.pread(file, min(PIECE, self.offset - at), at))
                self._hash = found
            # Bytes of an append that failed half way may lie behind the end.
            os.ftruncate(file, self.offset)
            return self._hash.hexdigest()

    def close(self) -> None:
        """Close the file; it is opened again when needed."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None

    def remove(self) -> None:
        """Delete the files."""
        self.close()
        with self._lock:
            self._removed = True
            self._record_path.unlink(missing_ok=True)
            self._bytes.unlink(missing_ok=True)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise errors.Exhausted("the disk of the service is full", reason="DISK_FULL") from error
        raise errors.Unavailable(f"the upload cannot be kept: {error.strerror}", reason="DATA_UNREACHABLE") from error
