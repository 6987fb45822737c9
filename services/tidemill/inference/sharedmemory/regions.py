"""The regions of shared memory that clients have registered, by name."""

import threading
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

from tidemill.errors import AlreadyExists, Exhausted, Invalid, NotFound
from tidemill.inference.inputs import shown

MAX_REGIONS = 1024
"""Most regions at a time."""
MAX_NAME = 256
_LARGEST = 2**64 - 1


class Region(ABC):
    """A region, which is closed when it is retired and its last use has ended.

    As a context manager it ends one use that `Regions.use` began.

    Args:
        name: unique among all regions.
        size: bytes.
    """

    kind = "system"

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._lock = threading.Lock()
        self._users = 0
        self._retired = False

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """A copy of these bytes, which lie within the region.

        Raises:
            Invalid: the memory is not there any more.
        """

    @abstractmethod
    def write(self, offset: int, data: bytes) -> None:
        """Put `data` there, which fits within the region.

        Raises:
            Invalid: the memory is not there any more.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the memory. Nobody uses it any more."""

    def check(self, offset: int, size: int) -> None:
        """Return when these bytes lie within the region. Raises Invalid."""
        if not 0 <= offset < self.size:
            raise Invalid(f"Invalid offset for shared memory region: '{self.name}'", reason="OUT_OF_REGION")
        if size < 0 or offset + size > self.size:
            raise Invalid(f"Invalid offset + byte size for shared memory region: '{self.name}'", reason="OUT_OF_REGION")

    def acquire(self) -> bool:
        """Begin a use; False when it is retired."""
        with self._lock:
            self._users += not self._retired
            return not self._retired

    def release(self) -> None:
        """End a use."""
        with self._lock:
            self._users -= 1
            last = self._retired and not self._users
        if last:
            self.close()

    def retire(self) -> None:
        """Take no new uses; it is closed when those that there are have ended."""
        with self._lock:
            last = not self._retired and not self._users
            self._retired = True
        if last:
            self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Regions:
    """All regions. Safe to use from any thread."""

    def __init__(self, limit: int = MAX_REGIONS) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._regions: dict[str, Region] = {}

    def check_new(self, name: str, offset: int, size: int) -> None:
        """Return when a region may be registered so.

        Raises:
            Invalid: the name or the sizes are wrong.
            AlreadyExists: the name is taken.
            Exhausted: there are too many regions.
        """
        if not name or len(name) > MAX_NAME or not name.isprintable():
            raise Invalid(f"name: must have 1 to {MAX_NAME} printable characters", reason="INVALID_REGION")
        if offset + size > _LARGEST:
            raise Invalid(
                f"Integer overflow detected: byte_size ({size}) + offset ({offset}) exceeds maximum value "
                f"({_LARGEST}) for region '{name}'",
                reason="INVALID_REGION",
            )
        with self._lock:
            self._check_room(name)

    def add(self, region: Region) -> None:
        """Register a region. Raises AlreadyExists, Exhausted."""
        with self._lock:
            self._check_room(region.name)
            self._regions[region.name] = region

    def remove(self, kind: str, name: str = "") -> None:
        """Unregister the region of this kind with this name, or all of this kind; it is no error if there is none."""
        with self._lock:
            gone = [region for region in self._regions.values() if region.kind == kind and name in ("", region.name)]
            for region in gone:
                del self._regions[region.name]
        for region in gone:
            region.retire()

    def find(self, kind: str, name: str = "") -> list[Region]:
        """The region of this kind with this name, or all of this kind.

        Raises:
            NotFound: there is no region with this name.
        """
        with self._lock:
            found = [region for region in self._regions.values() if region.kind == kind and name in ("", region.name)]
        if name and not found:
            raise NotFound(f"Unable to find {kind} shared memory region: '{shown(name)}'", reason="REGION_NOT_FOUND")
        return found

    def use(self, name: str) -> Region:
        """The region with this name, in use until its context ends.

        Raises:
            NotFound: there is none.
        """
        with self._lock:
            region = self._regions.get(name)
        if region is None or not region.acquire():
            raise NotFound(f"Unable to find shared memory region: '{shown(name)}'", reason="REGION_NOT_FOUND")
        return region

    def close(self) -> None:
        """Unregister all."""
        for kind in ("system", "cuda"):
            self.remove(kind)

    def _check_room(self, name: str) -> None:
        if name in self._regions:
            raise AlreadyExists(f"shared memory region '{name}' already in manager", reason="REGION_EXISTS")
        if len(self._regions) >= self._limit:
            raise Exhausted(
                f"at most {self._limit} shared memory regions at a time; unregister some first",
                reason="TOO_MANY_REGIONS",
            )
