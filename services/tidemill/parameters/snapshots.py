"""The last two versions of a shard's parameters: readers keep what they read, writers take new memory."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tidemill.errors import OutOfRange
from tidemill.tensors.blocks import Array

VERSIONS = 3
"""Arrays of all values that a shard at work holds: the latest version, the one before, and the next one's draft."""


@dataclass(slots=True, eq=False)
class Buffer:
    """Values that never change while anybody can see them; versions between which nothing changed share one."""

    values: Array
    readers: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """One version of the parameters."""

    version: int
    buffer: Buffer

    @property
    def values(self) -> Array:
        """All elements of the part."""
        return self.buffer.values


class Snapshots:
    """The latest version and the one before. Not safe for threads by itself: its owner's lock guards it.

    Args:
        values: the first ones.
        version: theirs.
        new: makes an array like them.
    """

    def __init__(self, values: Array, version: int = 0, new: Callable[[], Array] | None = None) -> None:
        self._new = new or (lambda: np.empty_like(values))
        self.latest = Snapshot(version, Buffer(values))
        self._previous: Snapshot | None = None
        self._spare: tuple[Array, int] | None = None
        self.drafted: int | None = None
        """The version whose values are in what `draft` gave last; None = none's."""

    def take(self, version: int) -> Snapshot:
        """The snapshot of `version`, which is not later than the latest; counted as read until `release`.

        Raises:
            OutOfRange: with reason VERSION_GONE, it is not kept any more.
        """
        latest = self.latest
        found = latest if version == latest.version else self._previous
        if found is None or found.version != version:
            raise OutOfRange(
                f"version {version} is not kept any more; the latest is {latest.version}",
                reason="VERSION_GONE",
                metadata={"version": str(version), "latest": str(latest.version)},
            )
        found.buffer.readers += 1
        return found

    def move(self) -> None:
        """Let all versions that are there lie in new arrays; whoever reads goes on in the old ones."""
        self._spare = None
        buffers = [self.latest.buffer] + ([self._previous.buffer] if self._previous else [])
        for buffer in dict.fromkeys(buffers):
            array = self._new()
            np.copyto(array, buffer.values)
            buffer.values = array

    def release(self, snapshot: Snapshot) -> None:
        """End a reading."""
        snapshot.buffer.readers -= 1

    def draft(self) -> Array:
        """Memory for the next values, which nobody else sees, to be filled and handed to `advance`."""
        spare, self._spare = self._spare, None
        if spare is None:
            self.drafted = None
            return self._new()
        self.drafted = spare[1]
        return spare[0]

    def advance(self, values: Array | None) -> None:
        """Let `values` be the next version; None = those of the latest have not changed."""
        retired, self._previous = self._previous, self.latest
        buffer = self.latest.buffer if values is None else Buffer(values)
        self.latest = Snapshot(self.latest.version + 1, buffer)
        if retired is not None and not retired.buffer.readers and retired.buffer is not self._previous.buffer:
            # Whoever reads has taken it under the lock: without readers, nobody will see it again.
            self._spare = retired.values, retired.version
