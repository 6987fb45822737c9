"""Bytes to be uploaded, from memory or from a file: hashed first, then read from any offset."""

import asyncio
import hashlib
import shutil
import tempfile
import threading
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeAlias

from tidemill.rpc.options import CHUNK

Content: TypeAlias = bytes | Path | BinaryIO
"""What can be uploaded: bytes, the path of a file, or an open binary file from its current position on."""


class Source:
    """The bytes of a `Content`; use as an async context manager. A file that was given open stays open."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._file: BinaryIO = BytesIO()
        self._start = 0
        self._closed = False
        self._lock = threading.Lock()
        self.sha256 = ""
        """Digest of the bytes."""
        self.size = 0
        """Number of the bytes."""

    async def __aenter__(self) -> Self:
        try:
            await asyncio.to_thread(self._open)
        except BaseException:
            await asyncio.to_thread(self._close)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self._close)

    def _open(self) -> None:
        with self._lock:
            if isinstance(self._content, bytes | bytearray | memoryview):
                self._file = BytesIO(self._content)
            elif isinstance(self._content, Path):
                self._file = self._content.open("rb")
            elif self._content.seekable():
                self._file = self._content
                self._start = self._file.tell()
            else:  # a pipe: what is sent must be readable again after a broken connection
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 closed by _close
                shutil.copyfileobj(self._content, self._file, CHUNK)
                self._file.seek(0)
            found = hashlib.sha256()
            while piece := self._file.read(CHUNK):
                found.update(piece)
                self.size += len(piece)
            self.sha256 = found.hexdigest()

    async def read(self, offset: int) -> bytes:
        """At most one chunk from `offset` on; empty at the end."""
        return await asyncio.to_thread(self._read, offset)

    def _read(self, offset: int) -> bytes:
        with self._lock:
            if self._closed:
                return b""
            self._file.seek(self._start + offset)
            return self._file.read(min(CHUNK, max(0, self.size - offset)))

    def _close(self) -> None:
        with self._lock:
            self._closed = True
            if self._file is not self._content:
                self._file.close()
