"""The contract of the key-value store: what every implementation does, in etcd's terms.

Keys are `str`, values `bytes`. The store counts *revisions*: every successful write transaction that changes
anything makes exactly one new revision, larger than any before, also over restarts. All changes of one
transaction share its revision.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Entry:
    """A key with its value, as read at one revision."""

    key: str
    value: bytes
    create_revision: int
    """Revision at which the key was created (the fencing token of a lock key)."""
    mod_revision: int
    """Revision of the last write; the source of etags."""
    version: int
    """Number of writes since creation, from 1."""
    lease: int = 0
    """Lease that the key lives by; 0 = none."""


@dataclass(frozen=True, slots=True)
class Page:
    """The answer of a range read."""

    entries: tuple[Entry, ...]
    revision: int
    """Store revision at which the read was made."""
    more: bool = False
    """Whether the limit cut the answer."""


@dataclass(frozen=True, slots=True)
class Compare:
    """A guard of a transaction: true when the key is at this `mod_revision` (or `create_revision`); 0 = absent."""

    key: str
    mod_revision: int | None = None
    create_revision: int | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """Write `value` under `key`; with `lease`, the key vanishes when that lease ends."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete `key`, or with `prefix` every key that starts with it; deleting what is absent changes nothing."""

    key: str
    prefix: bool = False


Operation: TypeAlias = Put | Delete


@dataclass(frozen=True, slots=True)
class TxnResult:
    """The outcome of a transaction."""

    succeeded: bool
    """Whether every guard held and the operations were applied."""
    revision: int
    """The revision that the transaction made, or the store's when it changed nothing."""


class EventType(Enum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one key. For DELETE the entry has an empty value and the deleting revision as `mod_revision`."""

    type: EventType
    entry: Entry


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All events under the watched prefix of one or more whole revisions, in order; never part of a revision."""

    revision: int
    """Resume with `from_revision = revision + 1`."""
    events: tuple[Event, ...] = field(default_factory=tuple)


class CompactedError(Exception):
    """The revision to watch from is gone: list again, and watch from the list's revision + 1."""

    def __init__(self, compact_revision: int) -> None:
        super().__init__(f"revisions below {compact_revision} are compacted")
        self.compact_revision = compact_revision


class Kv(ABC):
    """A revisioned key-value store.

    Every method raises `errors.Unavailable` when the store cannot be reached. A write that raises it with reason
    `OUTCOME_UNKNOWN` may or may not have been applied; the caller reads back. Nothing is ever retried blindly.
    """

    @abstractmethod
    async def get(self, key: str) -> Entry | None:
        """The entry of `key`, or None; linearizable."""

    @abstractmethod
    async def range(self, prefix: str, *, start_after: str = "", limit: int = 0, revision: int = 0) -> Page:
        """Entries whose key starts with `prefix`, in key order.

        Args:
            prefix: "" means all keys.
            start_after: only keys greater than this (a full key), for pages.
            limit: most entries to return; 0 = all.
            revision: read the store as it was at this revision; 0 = now.

        Raises:
            CompactedError: that revision is not kept any more.
        """

    @abstractmethod
    async def txn(self, compares: Sequence[Compare], operations: Sequence[Operation]) -> TxnResult:
        """Apply all `operations` at one revision if every guard holds, else none. A key occurs once in `operations`.

        Raises:
            errors.NotFound: reason LEASE_NOT_FOUND, when a put names a lease that has ended.
        """

    async def put(self, key: str, value: bytes, *, lease: int = 0) -> TxnResult:
        """Write one key without a guard."""
        return await self.txn([], [Put(key, value, lease)])

    async def delete(self, key: str, *, prefix: bool = False) -> TxnResult:
        """Delete one key, or all keys with a prefix, without a guard."""
        return await self.txn([], [Delete(key, prefix)])

    @abstractmethod
    def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        """All changes under `prefix` from `from_revision` on, each exactly once and in order, for ever.

        Breaks of the connection are mended inside, without loss or repetition. Batches without events may come
        as a sign of progress. Closing the iterator (`aclose`) frees everything.

        Raises:
            CompactedError: from the iteration, when the next revision is gone.
            errors.PermissionDenied, errors.Unavailable: when the store ends the watch for good, with its reason.
        """

    @abstractmethod
    async def grant_lease(self, ttl: float) -> int:
        """A new lease (never 0) that ends `ttl` seconds (>= 1; etcd rounds up to whole ones) after its last renewal."""

    @abstractmethod
    async def renew_lease(self, lease: int) -> float:
        """Start the lease's time again; its time to live in seconds.

        Raises:
            errors.NotFound: reason LEASE_NOT_FOUND, when it has ended.
        """

    @abstractmethod
    async def revoke_lease(self, lease: int) -> None:
        """End the lease now and delete its keys; ending one that has ended is no error."""

    @abstractmethod
    async def compact(self, revision: int) -> None:
        """Forget history below `revision`; current values stay."""

    @abstractmethod
    async def check(self) -> None:
        """Return when the store answers now; raise `errors.Unavailable` when not. For health."""

    @abstractmethod
    async def close(self) -> None:
        """Free connections, files and tasks."""
