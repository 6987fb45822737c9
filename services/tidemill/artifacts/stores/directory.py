"""Objects as files of a local directory.

The object `area/{sha256}` is the file `area/{first two digits}/{sha256}`. Files are written under `temporary/`, flushed
to the disk, and renamed; the folder that then names them is flushed too.
"""

import asyncio
import errno
import os
import re
import secrets
import shutil
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Self, TypeVar

from tidemill import errors
from tidemill.artifacts.config import ArtifactsConfig
from tidemill.artifacts.stores.base import CHUNK, Entry, Store, check_key, check_prefix, check_small

T = TypeVar("T")
THREADS = 16
_FAN = re.compile(r"[0-9a-f]{2}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


class DirectoryStore(Store):
    """Objects under `root`, which is made, and belongs to one process, from `start` on."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._temporary = root / "temporary"
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="directory")

    @classmethod
    def open(cls, config: ArtifactsConfig) -> Self:
        """The store in the folder `objects` of the data directory."""
        return cls(Path(config.data) / "objects")

    async def _run(self, what: str, work: Callable[[], T]) -> T:
        def translated() -> T:
            with self._translated(what):
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._threads, translated)

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            self._check_there()
            raise errors.NotFound(f"{what} does not exist") from error
        except OSError as error:
            if error.errno in _FULL:
                raise errors.Exhausted("the disk of the store is full", reason="DISK_FULL") from error
            raise errors.Unavailable(
                f"the store's folder cannot be used: {error.strerror}", reason="STORE_UNREACHABLE"
            ) from error

    def _check_there(self) -> None:
        """Raise when the folder itself is gone, with a disk perhaps: its objects are not deleted then."""
        if not os.access(self._temporary, os.W_OK | os.X_OK):
            raise errors.Unavailable("the store's folder is gone or read-only", reason="STORE_UNREACHABLE")

    async def start(self) -> None:
        """Make the folder, and remove what a killed process left half done."""

        def start() -> None:
            _make_folder(self._root)
            shutil.rmtree(self._temporary, ignore_errors=True)
            _make_folder(self._temporary)

        await self._run("the store's folder", start)

    def _path(self, key: str) -> Path:
        area, digest, *more = check_key(key).split("/")
        return self._root.joinpath(area, digest[:2], digest, *more)

    async def put(self, key: str, source: Path) -> None:
        """Keep the bytes of a local file, without a copy if it is on the same disk."""
        path = self._path(key)

        def put() -> None:
            with self._written(path) as temporary:
                try:
                    os.link(source, temporary)
                except OSError as error:
                    if error.errno not in _NO_LINK:
                        raise
                    shutil.copyfile(source, temporary)
                os.utime(temporary)

        await self._run(key, put)

    async def put_small(self, key: str, data: bytes) -> bool:
        """Keep a few bytes if there is no such object yet; whether it was absent."""
        path = self._path(key)
        check_small(data)

        def put() -> bool:
            try:
                with self._written(path, replace=False) as temporary:
                    temporary.write_bytes(data)
            except FileExistsError:
                return False
            return True

        return await self._run(key, put)

    @contextmanager
    def _written(self, path: Path, *, replace: bool = True) -> Iterator[Path]:
        """A temporary path; the file that the block makes there becomes `path`."""
        temporary = self._temporary / secrets.token_hex(16)
        try:
            yield temporary
            temporary.chmod(0o400)
            _flush(temporary)
            self._name(temporary, path, replace)
        finally:
            temporary.unlink(missing_ok=True)

    def _name(self, temporary: Path, path: Path, replace: bool) -> None:
        while True:
            _make_folder(path.parent)
            try:
                if replace:
                    temporary.replace(path)
                else:
                    os.link(temporary, path)
                break
            except FileNotFoundError:  # the folder became empty and was removed meanwhile: delete does so
                if not temporary.exists():
                    raise
        with suppress(FileNotFoundError):  # as above: the object was deleted already
            _flush(path.parent)

    async def get(self, key: str, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on, at most `length` of them, in pieces of at most `CHUNK`."""
        reader = _Reader(self._path(key), offset, length)
        try:
            while chunk := await self._run(key, reader.read):
                yield chunk
        finally:
            # Not here: it waits for a read that is still going on in another thread.
            try:
                self._threads.submit(reader.close)
            except RuntimeError:  # the store is closed
                reader.close()

    async def stat(self, key: str) -> Entry:
        """Describe one object."""
        path = self._path(key)
        return await self._run(key, lambda: _entry(key, path))

    async def entries(self, prefix: str, start_after: str = "", limit: int = 1000) -> list[Entry]:
        """At most `limit` objects whose key starts with `prefix`, in order of key."""
        area, *digest = check_prefix(prefix).rstrip("/").split("/")

        def entries() -> list[Entry]:
            found: list[Entry] = []
            keys = self._keys_below(area, digest[0]) if digest else self._keys(area, start_after)
            for key in keys:
                if len(found) >= limit:
                    break
                if key > start_after:
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        found.append(_entry(key, self._path(key)))
            self._check_there()
            return found

        return await self._run(prefix, entries)

    def _keys(self, area: str, start_after: str) -> Iterator[str]:
        first = start_after.removeprefix(f"{area}/")[:2] if start_after.startswith(f"{area}/") else ""
        for fan in _names(self._root / area, _FAN):
            if fan < first:
                continue
            for digest in _names(self._root / area / fan, _DIGEST):
                if (self._root / area / fan / digest).is_dir():
                    yield from self._keys_below(area, digest)
                else:
                    yield f"{area}/{digest}"

    def _keys_below(self, area: str, digest: str) -> Iterator[str]:
        for name in _names(self._root / area / digest[:2] / digest, _DIGEST):
            yield f"{area}/{digest}/{name}"

    async def delete(self, key: str) -> None:
        """Delete an object; deleting what is absent changes nothing."""
        path = self._path(key)

        def delete() -> None:
            try:
                path.unlink()
            except FileNotFoundError:
                self._check_there()
                return
            with suppress(FileNotFoundError):  # removed, as below, by somebody else
                _flush(path.parent)
            if key.count("/") > 1:
                with suppress(OSError):  # not empty
                    path.parent.rmdir()
                    _flush(path.parent.parent)

        await self._run(key, delete)

    async def check(self) -> None:
        """Return when the folder is there and can be written to."""
        await self._run("the store's folder", self._check_there)

    async def close(self) -> None:
        """End the threads."""
        await asyncio.to_thread(self._threads.shutdown)


class _Reader:
    """The bytes of one file, opened at the first read."""

    def __init__(self, path: Path, offset: int, length: int | None) -> None:
        self._path = path
        self._offset = offset
        self._left = length
        self._file: BinaryIO | None = None
        self._closed = False
        self._lock = threading.Lock()

    def read(self) -> bytes:
        """The next piece; empty at the end."""
        with self._lock:
            if self._closed:
                return b""
            if self._file is None:
                self._file = self._path.open("rb")
                size = os.fstat(self._file.fileno()).st_size
                if self._offset > size:
                    raise errors.OutOfRange(f"offset {self._offset} lies beyond the end at {size}")
                self._file.seek(self._offset)
            chunk = self._file.read(CHUNK if self._left is None else min(CHUNK, self._left))
            if self._left is not None:
                self._left -= len(chunk)
            return chunk

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()


def _entry(key: str, path: Path) -> Entry:
    status = path.stat()
    return Entry(key, status.st_size, status.st_mtime)


def _names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if pattern.fullmatch(name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _make_folder(folder: Path) -> None:
    """Make a folder for this user alone, durably."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    _flush(folder.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
