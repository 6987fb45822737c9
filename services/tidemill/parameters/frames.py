"""Files of frames: each says how long it is and proves that it is whole.

A frame is: magic (4 bytes), length of the facts (4), length of the body (8), CRC-32 of these and of the facts (4); the
facts, JSON; the body; CRC-32 of the body (4). Numbers are little-endian. A file that was being written when its process
ended has a last frame that is shorter than it says: that one was never there.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.errors import DataLoss
from tidemill.tensors.blocks import Array

MAGIC = b"TMf1"
_HEAD = struct.Struct("<4sIQI")
_TAIL = struct.Struct("<I")
MAX_FACTS = 16 << 20
FLOAT = np.dtype("<f4")


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One that was read whole."""

    facts: Mapping[str, Any]
    body: Array
    """float32."""
    end: int
    """Position in the file after it."""


class Writer:
    """Appends frames to a file.

    Args:
        path: of the file, made when it is not there.
        size: bytes of it that count; what comes after them is cut off.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._file, size)
        self.size = size
        """Bytes of all frames that are whole."""
        self._end = size
        self._left = 0
        self._crc = 0

    def begin(self, facts: Mapping[str, Any], length: int) -> None:
        """Begin a frame whose body has so many bytes. One that was begun before and not ended is gone."""
        if self._end != self.size:
            os.ftruncate(self._file, self.size)
        self._end = self.size
        text = json.dumps(facts, separators=(",", ":")).encode()
        head = _HEAD.pack(MAGIC, len(text), length, 0)[:-4]
        self._put(b"".join((head, _TAIL.pack(zlib.crc32(text, zlib.crc32(head))), text)))
        self._left, self._crc = length, 0

    def add(self, data: memoryview) -> None:
        """The next part of the body, bytes."""
        self._crc = zlib.crc32(data, self._crc)
        self._left -= len(data)
        self._put(data)

    def end(self) -> None:
        """The body is there: the frame counts."""
        if self._left:
            raise ValueError(f"the body lacks {self._left} bytes")
        self._put(_TAIL.pack(self._crc))
        self.size = self._end

    def sync(self) -> None:
        """Return when the disk has what was written."""
        os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            done = os.pwrite(self._file, view, self._end)
            self._end += done
            view = view[done:]


def read(path: Path) -> Iterator[Frame]:
    """The frames of a file that are whole, in order; a last one that is too short is left out.

    Raises:
        DataLoss: a frame is damaged.
    """
    position = 0
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        while size - position >= _HEAD.size:
            head = file.read(_HEAD.size)
            magic, length, body_length, crc = _HEAD.unpack(head)
            if magic != MAGIC or length > MAX_FACTS or body_length % FLOAT.itemsize:
                raise _damaged(path, position)
            end = position + _HEAD.size + length + body_length + _TAIL.size
            text = file.read(length)
            if len(text) < length:
                return
            if zlib.crc32(text, zlib.crc32(head[:-4])) != crc:
                raise _damaged(path, position)
            if end > size:
                return
            body = np.fromfile(file, FLOAT, body_length // FLOAT.itemsize)
            if _TAIL.unpack(file.read(_TAIL.size))[0] != zlib.crc32(body.data.cast("B") if body.size else b""):
                raise _damaged(path, position)
            yield Frame(json.loads(text), body, end)
            position = end


def _damaged(path: Path, position: int) -> DataLoss:
    return DataLoss(f"{path.name} is damaged at byte {position}", reason="DAMAGED")
