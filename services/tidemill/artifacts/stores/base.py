"""What the artifact service needs of a place that keeps objects.

An object is a sequence of bytes under a key: the name of an area and one or two digests, `blobs/{sha256}` or
`uses/{sha256}/{sha256}`. Keys hold nothing that a user could choose. An object appears whole or not at all.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tidemill.artifacts.config import ArtifactsConfig
from tidemill.errors import DataLoss, Invalid

CHUNK = 1 << 20
"""Largest piece in which bytes are read, in bytes."""
SMALL = 4 << 20
"""Largest object for `put_small` and `read_small`, in bytes."""

_KEY = re.compile(r"[a-z]+/[0-9a-f]{64}(/[0-9a-f]{64})?")
_PREFIX = re.compile(r"[a-z]+/([0-9a-f]{64}/)?")


@dataclass(frozen=True, slots=True)
class Entry:
    """An object: its key, its size in bytes, and when it was stored in seconds since the epoch."""

    key: str
    size: int
    modified: float


class Store(ABC):
    """Keeps objects. Methods may be called at the same time from many tasks of one loop.

    Every method raises `Unavailable` when the store cannot be used now: the same call may succeed later. A write that
    raises it may or may not have happened; reads were tried several times. `Exhausted` says that there is no space.
    """

    @classmethod
    @abstractmethod
    def open(cls, config: ArtifactsConfig) -> Self:
        """The store that the settings describe; nothing is touched yet.

        Raises:
            Invalid: a setting is missing or wrong.
        """

    @abstractmethod
    async def start(self) -> None:
        """Make ready what is on this machine; what is not need not be reachable yet."""

    @abstractmethod
    async def put(self, key: str, source: Path) -> None:
        """Keep the bytes of a local file, durably; replaces the object if there is one.

        The file must not change afterwards: a store may share it instead of copying it. It is not removed.
        """

    @abstractmethod
    async def put_small(self, key: str, data: bytes) -> bool:
        """Keep at most `SMALL` bytes, durably, if there is no such object yet; whether it was absent."""

    @abstractmethod
    def get(self, key: str, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """The bytes from `offset` on, at most `length` of them, in pieces of at most `CHUNK`.

        Raises:
            NotFound: there is no such object.
            OutOfRange: `offset` lies beyond the end; at the end there are just no bytes.
        """

    async def read_small(self, key: str) -> bytes:
        """All bytes of a small object. Raises NotFound."""
        pieces = []
        async with aclosing(self.get(key, 0, SMALL + 1)) as chunks:
            async for chunk in chunks:
                pieces.append(chunk)
        data = b"".join(pieces)
        if len(data) > SMALL:
            raise DataLoss(f"{key} is larger than it can have been", reason="OBJECT_DAMAGED")
        return data

    @abstractmethod
    async def stat(self, key: str) -> Entry:
        """Describe one object. Raises NotFound."""

    @abstractmethod
    async def entries(self, prefix: str, start_after: str = "", limit: int = 1000) -> list[Entry]:
        """At most `limit` objects whose key starts with `prefix` (`area/` or `area/{sha256}/`), in order of key.

        Args:
            prefix: ends with a slash.
            start_after: only keys greater than this one, which need not exist.
            limit: fewer entries than this mean that the list ends here.
        """

    @abstractmethod
    async def delete(self, key: str) -> None:
        """Delete an object, durably; deleting what is absent changes nothing."""

    @abstractmethod
    async def check(self) -> None:
        """Return when the store can be used now; raise `Unavailable` when not. For health."""

    @abstractmethod
    async def close(self) -> None:
        """Free threads and connections."""


def check_key(key: str) -> str:
    """`key` itself when it is one.

    Raises:
        Invalid: with reason INVALID_KEY.
    """
    if not _KEY.fullmatch(key):
        raise Invalid(f"{key[:80]!r} is not the key of an object", reason="INVALID_KEY")
    return key


def check_prefix(prefix: str) -> str:
    """`prefix` itself when keys can start with it.

    Raises:
        Invalid: with reason INVALID_KEY.
    """
    if not _PREFIX.fullmatch(prefix):
        raise Invalid(f"{prefix[:80]!r} is not a prefix of keys", reason="INVALID_KEY")
    return prefix


def check_small(data: bytes) -> bytes:
    """`data` itself when it is small.

    Raises:
        Invalid: with reason OBJECT_TOO_LARGE.
    """
    if len(data) > SMALL:
        raise Invalid(f"{len(data)} bytes are more than {SMALL}", reason="OBJECT_TOO_LARGE")
    return data
