"""The embedded key-value store: a file (or memory), one process, no server."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from tidemill.clock import Clock, SystemClock
from tidemill.errors import Exhausted, NotFound, TidemillError, Unavailable
from tidemill.kv.base import Compare, Entry, Kv, Operation, Page, TxnResult, WatchBatch
from tidemill.kv.checks import check_key, check_range, check_revision, check_ttl, check_txn, encode
from tidemill.kv.sqlite_store import Changes, SqliteStore

T = TypeVar("T")

KEEP_REVISIONS = 100_000
"""How much history is kept by default."""
MAX_BYTES = 2 << 30
"""Largest file by default, as etcd's."""
MAX_PENDING = 1024
"""Calls that may wait for the one thread that owns the file."""
EXPIRY_RETRY = 1.0
"""Seconds between attempts to end a lease when the disk does not let it."""

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Watcher:
    """A place in history that one watch has reached."""

    prefix: bytes
    next: int
    """First revision not yet looked at."""
    behind: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while there may be something to read from `next` on."""


class SqliteKv(Kv):
    """The contract of `Kv` over SQLite; made by `open`.

    A write is acknowledged when it is on the disk (write-ahead log, synchronous FULL). One thread owns the file, so the
    event loop never waits for it. History beyond `keep_revisions` is forgotten automatically. Leases survive a restart
    with their full time to live, because nobody could renew them meanwhile.
    """

    def __init__(
        self, store: SqliteStore, worker: ThreadPoolExecutor, clock: Clock, revision: int, leases: dict[int, float]
    ) -> None:
        self._store = store
        self._worker = worker
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._pending = 0
        self._closed = False
        self._revision = revision
        self._ttls = leases
        self._deadlines = {lease: clock.monotonic() + ttl for lease, ttl in leases.items()}
        self._granted = asyncio.Event()
        self._watchers: set[_Watcher] = set()
        self._expiry = asyncio.create_task(self._expire())

    @classmethod
    async def open(
        cls,
        path: str | Path,
        *,
        clock: Clock | None = None,
        keep_revisions: int = KEEP_REVISIONS,
        max_bytes: int = MAX_BYTES,
    ) -> "SqliteKv":
        """Open the store in the file `path`, or a new one in memory for ":memory:".

        Args:
            path: the file, made when missing, as is its folder.
            clock: what leases expire by.
            keep_revisions: revisions of history to keep at least.
            max_bytes: largest file; when it is reached, history is forgotten, and then writes raise `Exhausted`.

        Raises:
            errors.FailedPrecondition: another process has the file (STORE_IN_USE), it is of a newer release
                (DATA_VERSION_NEWER), or it is something else (NOT_A_STORE).
            errors.Unavailable: it cannot be opened.
        """
        worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kv-sqlite")

        def load() -> tuple[SqliteStore, int, dict[int, float]]:
            target = None if str(path) == ":memory:" else Path(path).resolve()
            store = SqliteStore(target, keep_revisions=keep_revisions, max_bytes=max_bytes)
            return store, store.revisions()[0], store.leases()

        try:
            store, revision, leases = await asyncio.get_running_loop().run_in_executor(worker, load)
        except BaseException:
            worker.shutdown(wait=False)
            raise
        return cls(store, worker, clock or SystemClock(), revision, leases)

    async def get(self, key: str) -> Entry | None:
        return await self._call(self._store.get, check_key(key))

    async def range(self, prefix: str, *, start_after: str = "", limit: int = 0, revision: int = 0) -> Page:
        encode(prefix)
        check_range(start_after, limit, revision)
        return await self._call(self._store.range, prefix, start_after, limit, revision)

    async def txn(self, compares: Sequence[Compare], operations: Sequence[Operation]) -> TxnResult:
        check_txn(compares, operations)
        result, _ = await self._call(self._changing(self._store.txn), tuple(compares), tuple(operations))
        return result

    async def watch(self, prefix: str, from_revision: int) -> AsyncGenerator[WatchBatch, None]:
        check_revision(from_revision, "from_revision")
        watcher = _Watcher(encode(prefix), from_revision)
        if from_revision <= self._revision:
            watcher.behind.set()
        self._watchers.add(watcher)
        try:
            while True:
                await watcher.behind.wait()
                now = self._revision
                if watcher.next <= now:
                    first = watcher.next
                    reached, events = await self._call(self._store.read_changes, watcher.prefix, first, now)
                    watcher.next = reached + 1
                    if events or reached - first >= 1000:
                        yield WatchBatch(reached, events)
                if self._closed:
                    raise _closed()
                if watcher.next > self._revision:
                    watcher.behind.clear()
        finally:
            self._watchers.discard(watcher)

    async def grant_lease(self, ttl: float) -> int:
        check_ttl(ttl)
        return await self._call(partial(self._grant, self._clock.monotonic() + ttl), ttl)

    async def renew_lease(self, lease: int) -> float:
        self._check_open()
        now = self._clock.monotonic()
        if self._deadlines.get(lease, now) <= now:
            raise NotFound(f"lease {lease} has ended", reason="LEASE_NOT_FOUND", metadata={"lease": str(lease)})
        self._deadlines[lease] = now + self._ttls[lease]
        return self._ttls[lease]

    async def revoke_lease(self, lease: int) -> None:
        await self._call(self._end_lease, lease)

    async def compact(self, revision: int) -> None:
        check_revision(revision, "revision")
        await self._call(self._store.compact, revision)

    async def check(self) -> None:
        await self._call(self._store.revisions)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._expiry.cancel()
        with suppress(asyncio.CancelledError):
            await self._expiry
        for watcher in self._watchers:
            watcher.behind.set()
        await self._loop.run_in_executor(self._worker, self._store.close)
        self._worker.shutdown()

    def _check_open(self) -> None:
        if self._closed:
            raise _closed()

    async def _call(self, function: Callable[..., T], *args: object) -> T:
        """Run `function` in the thread of the file, after ending the leases whose time is over.

        A caller that gives up does not undo what runs: what a write changes in this object it does through the event
        loop, before the caller hears of it.
        """
        self._check_open()
        if self._pending >= MAX_PENDING:
            raise Exhausted(f"more than {MAX_PENDING} calls wait for the store", reason="QUEUE_FULL")
        now = self._clock.monotonic()
        due = [lease for lease, deadline in self._deadlines.items() if deadline <= now]
        self._pending += 1
        future = self._loop.run_in_executor(self._worker, self._after_expiry, due, partial(function, *args))
        future.add_done_callback(self._done)
        return await future

    def _done(self, _: "asyncio.Future[T]") -> None:
        self._pending -= 1

    # In the thread of the file:

    def _after_expiry(self, due: list[int], function: Callable[[], T]) -> T:
        for lease in due:
            try:
                self._end_lease(lease)
            except TidemillError as error:  # its keys stay a little longer, which a lock can bear
                _log.warning("cannot end lease %d yet: %s", lease, error)
        return function()

    def _grant(self, deadline: float, ttl: float) -> int:
        lease = self._store.grant(ttl)
        self._loop.call_soon_threadsafe(self._lease_granted, lease, ttl, deadline)
        return lease

    def _end_lease(self, lease: int) -> None:
        changes = self._store.revoke(lease)
        self._loop.call_soon_threadsafe(self._lease_ended, lease)
        self._loop.call_soon_threadsafe(self._changed, changes)

    def _changing(self, function: Callable[..., tuple[T, Changes]]) -> Callable[..., tuple[T, Changes]]:
        def run(*args: object) -> tuple[T, Changes]:
            result, changes = function(*args)
            self._loop.call_soon_threadsafe(self._changed, changes)
            return result, changes

        return run

    # In the event loop:

    def _lease_granted(self, lease: int, ttl: float, deadline: float) -> None:
        self._ttls[lease] = ttl
        self._deadlines[lease] = deadline
        self._granted.set()

    def _lease_ended(self, lease: int) -> None:
        self._ttls.pop(lease, None)
        self._deadlines.pop(lease, None)

    def _changed(self, changes: Changes) -> None:
        """Wake the watchers whose keys changed; those that had seen all before need not read the others' changes."""
        if not changes.keys:
            return
        self._revision = changes.revision
        for watcher in self._watchers:
            if watcher.behind.is_set():
                continue
            if watcher.next < changes.revision or any(key.startswith(watcher.prefix) for key in changes.keys):
                watcher.behind.set()
            else:
                watcher.next = max(watcher.next, changes.revision + 1)

    async def _expire(self) -> None:
        """End leases at their time, also when nobody calls."""
        while True:
            self._granted.clear()
            now = self._clock.monotonic()
            wait = min(self._deadlines.values(), default=float("inf")) - now
            if wait <= 0:
                try:
                    await self._call(self._store.revisions)
                except TidemillError as error:
                    _log.warning("cannot look for ended leases: %s", error)
                if any(deadline <= now for deadline in self._deadlines.values()):
                    await self._clock.sleep(EXPIRY_RETRY)
                continue
            granted = asyncio.ensure_future(self._granted.wait())
            waits = [granted]
            if wait != float("inf"):
                waits.append(asyncio.ensure_future(self._clock.sleep(wait)))  # type: ignore[arg-type]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in waits:
                    task.cancel()


def _closed() -> Unavailable:
    return Unavailable("the store is closed", reason="CLOSED")
