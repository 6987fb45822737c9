"""A multi-version store in one SQLite file: plain blocking calls, for one thread at a time."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tidemill.errors import Exhausted, FailedPrecondition, NotFound, OutOfRange, TidemillError
from tidemill.kv.base import CompactedError, Compare, Entry, Event, EventType, Operation, Page, Put, TxnResult
from tidemill.kv.checks import decode, encode, prefix_end
from tidemill.kv.sqlite_file import lock_file, translated

SCHEMA_VERSION = 1
"""Version of the file's layout; a file of a newer one is refused."""
APPLICATION_ID = 0x54494445
"""Marks the file as ours ("TIDE")."""
COMPACT_STEP = 1000
"""Revisions forgotten at a time, so that no write waits long for it."""
READ_EVENTS = 1000
READ_BYTES = 4 << 20
READ_REVISIONS = 10_000
"""Bounds of one read of the history; it ends at the first whole revision beyond one of them."""

_SCHEMA = (
    "CREATE TABLE state (revision INTEGER NOT NULL, compacted INTEGER NOT NULL)",
    "INSERT INTO state VALUES (1, 0)",
    """CREATE TABLE history (
        seq INTEGER PRIMARY KEY, revision INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,
        create_revision INTEGER NOT NULL, version INTEGER NOT NULL, lease INTEGER NOT NULL,
        deleted INTEGER NOT NULL)""",
    "CREATE INDEX history_revision ON history (revision)",
    "CREATE UNIQUE INDEX history_key ON history (key, revision)",
    "CREATE INDEX history_lease ON history (lease) WHERE lease != 0",
    "CREATE TABLE current (key BLOB PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE leases (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl REAL NOT NULL)",
)
_COLUMNS = "h.key, h.value, h.create_revision, h.revision, h.version, h.lease"


@dataclass(frozen=True, slots=True)
class Changes:
    """What a write changed."""

    revision: int
    """The store's revision after it."""
    keys: tuple[bytes, ...] = ()
    """Keys written or deleted; empty when it changed nothing."""


class SqliteStore:
    """The file, its lock and the statements.

    Args:
        path: the file, made when missing; None keeps everything in memory.
        keep_revisions: how much history automatic compaction keeps.
        max_bytes: most bytes of the file; a write beyond it raises `Exhausted`.

    Raises:
        FailedPrecondition: another process has the file (STORE_IN_USE), it was written by a newer release
            (DATA_VERSION_NEWER), or it is something else (NOT_A_STORE).
        Unavailable: it cannot be opened.
    """

    def __init__(self, path: Path | None, *, keep_revisions: int, max_bytes: int) -> None:
        self._keep = keep_revisions
        self._lock = lock_file(path) if path else -1
        try:
            with translated():
                self._db = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False)
        except TidemillError:
            self._unlock()
            raise
        try:
            self._prepare(path, max_bytes)
        except TidemillError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file and give up its lock."""
        self._db.close()
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _prepare(self, path: Path | None, max_bytes: int) -> None:
        with translated():
            try:
                version = self._number("PRAGMA user_version")
                application = self._number("PRAGMA application_id")
                tables = self._number("SELECT count(*) FROM sqlite_schema")
            except sqlite3.DatabaseError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_NOTADB:
                    raise
                raise FailedPrecondition(f"{path} is not a key-value store", reason="NOT_A_STORE") from error
            if tables and application != APPLICATION_ID:
                raise FailedPrecondition(f"{path} is the database of something else", reason="NOT_A_STORE")
            if version > SCHEMA_VERSION:
                raise FailedPrecondition(
                    f"{path} has data version {version}, this release knows up to {SCHEMA_VERSION}: use a newer one",
                    reason="DATA_VERSION_NEWER",
                    metadata={"version": str(version), "supported": str(SCHEMA_VERSION)},
                )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(f"PRAGMA max_page_count={max(1, max_bytes // self._number('PRAGMA page_size'))}")
        if not tables:
            with self._transaction():
                for statement in _SCHEMA:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA application_id={APPLICATION_ID}")
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def revisions(self) -> tuple[int, int]:
        """The store's revision, and the one below which history is forgotten."""
        with translated():
            revision, compacted = self._db.execute("SELECT revision, compacted FROM state").fetchone()
            return revision, compacted

    def get(self, key: str) -> Entry | None:
        """The entry of `key` now."""
        with translated():
            row = self._db.execute(
                f"SELECT {_COLUMNS} FROM current c JOIN history h ON h.seq = c.seq WHERE c.key = ?", (encode(key),)
            ).fetchone()
        return _entry(row) if row else None

    def range(self, prefix: str, start_after: str, limit: int, revision: int) -> Page:
        """Entries under `prefix`; see `Kv.range`."""
        now, compacted = self.revisions()
        if revision > now:
            raise OutOfRange(f"revision {revision} is not made yet, the last is {now}", reason="FUTURE_REVISION")
        if revision and revision < compacted:
            raise CompactedError(compacted)
        where, bounds = _between(encode(prefix), encode(start_after))
        if revision in (0, now):
            source = f"current c JOIN history h ON h.seq = c.seq WHERE {where.format('c.key')}"
        else:
            source = (
                f"(SELECT key, max(revision) AS revision FROM history WHERE {where.format('key')} AND revision <= ? "
                "GROUP BY key) c JOIN history h ON h.key = c.key AND h.revision = c.revision WHERE NOT h.deleted"
            )
            bounds = [*bounds, revision]
        with translated():
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM {source} ORDER BY c.key LIMIT ?", [*bounds, limit + 1 if limit else -1]
            ).fetchall()
        more = bool(limit) and len(rows) > limit
        return Page(tuple(map(_entry, rows[:limit] if limit else rows)), revision or now, more)

    def txn(self, compares: Sequence[Compare], operations: Sequence[Operation]) -> tuple[TxnResult, Changes]:
        """A transaction; see `Kv.txn`. When there is no space, all history is forgotten first."""
        try:
            return self._txn(compares, operations)
        except Exhausted:
            now, compacted = self.revisions()
            if compacted >= now:
                raise
            self.compact(now)
            return self._txn(compares, operations)

    def _txn(self, compares: Sequence[Compare], operations: Sequence[Operation]) -> tuple[TxnResult, Changes]:
        with self._transaction():
            now, _ = self.revisions()
            if not all(self._holds(compare) for compare in compares):
                return TxnResult(succeeded=False, revision=now), Changes(now)
            for operation in operations:
                if isinstance(operation, Put) and operation.lease:
                    self._check_lease(operation.lease)
            keys: list[bytes] = []
            for operation in operations:
                raw = encode(operation.key)
                if isinstance(operation, Put):
                    self._write(now + 1, raw, operation.value, operation.lease)
                    keys.append(raw)
                else:
                    keys += self._delete(now + 1, self._keys(raw) if operation.prefix else [raw])
            changes = self._close_revision(now, keys)
        return TxnResult(succeeded=True, revision=changes.revision), changes

    def read_changes(self, prefix: bytes, first: int, last: int) -> tuple[int, tuple[Event, ...]]:
        """Events under `prefix` from revision `first` to `last` at most: the revision they reach, and the events.

        Raises:
            CompactedError: `first` is forgotten.
        """
        _, compacted = self.revisions()
        if first < compacted:
            raise CompactedError(compacted)
        last = min(last, first + READ_REVISIONS - 1)
        where, bounds = _between(prefix, b"")
        events: list[Event] = []
        size, reached = 0, first - 1
        with translated():
            cursor = self._db.execute(
                f"SELECT {_COLUMNS}, h.deleted FROM history h INDEXED BY history_revision "
                f"WHERE h.revision BETWEEN ? AND ? AND {where.format('h.key')} ORDER BY h.revision, h.seq",
                [first, last, *bounds],
            )
            for *row, deleted in cursor:
                revision = row[3]
                if revision != reached and (len(events) >= READ_EVENTS or size >= READ_BYTES):
                    cursor.close()
                    return reached, tuple(events)
                events.append(Event(EventType.DELETE if deleted else EventType.PUT, _entry(row)))
                size += len(row[1])
                reached = revision
        return last, tuple(events)

    def grant(self, ttl: float) -> int:
        """A new lease; its number is never used again."""
        with self._transaction():
            return int(self._db.execute("INSERT INTO leases (ttl) VALUES (?)", (ttl,)).lastrowid or 0)

    def leases(self) -> dict[int, float]:
        """Every lease and its time to live in seconds."""
        with translated():
            return dict(self._db.execute("SELECT id, ttl FROM leases").fetchall())

    def revoke(self, lease: int) -> Changes:
        """End a lease and delete its keys, all at one revision."""
        with self._transaction():
            now, _ = self.revisions()
            self._db.execute("DELETE FROM leases WHERE id = ?", (lease,))
            rows = self._db.execute(
                "SELECT h.key FROM history h WHERE h.lease = ? AND h.lease != 0 "
                "AND h.seq = (SELECT c.seq FROM current c WHERE c.key = h.key) ORDER BY h.key",
                (lease,),
            ).fetchall()
            return self._close_revision(now, self._delete(now + 1, [key for (key,) in rows]))

    def compact(self, revision: int) -> None:
        """Forget history below `revision`, a step at a time.

        Raises:
            OutOfRange: reason FUTURE_REVISION, when there is no such revision yet.
        """
        now, compacted = self.revisions()
        if revision > now:
            raise OutOfRange(f"revision {revision} is not made yet, the last is {now}", reason="FUTURE_REVISION")
        while compacted < revision:
            step = min(revision, compacted + COMPACT_STEP)
            with self._transaction():
                self._forget(compacted, step)
            compacted = step

    def _number(self, statement: str) -> int:
        return int(self._db.execute(statement).fetchone()[0])

    def _holds(self, compare: Compare) -> bool:
        entry = self.get(compare.key)
        found = (entry.mod_revision, entry.create_revision) if entry else (0, 0)
        return all(
            wanted is None or wanted == actual
            for wanted, actual in zip((compare.mod_revision, compare.create_revision), found, strict=True)
        )

    def _check_lease(self, lease: int) -> None:
        if not self._db.execute("SELECT 1 FROM leases WHERE id = ?", (lease,)).fetchone():
            raise NotFound(f"lease {lease} has ended", reason="LEASE_NOT_FOUND", metadata={"lease": str(lease)})

    def _keys(self, prefix: bytes) -> list[bytes]:
        where, bounds = _between(prefix, b"")
        rows = self._db.execute(f"SELECT key FROM current WHERE {where.format('key')} ORDER BY key", bounds).fetchall()
        return [key for (key,) in rows]

    def _write(self, revision: int, key: bytes, value: bytes, lease: int) -> None:
        row = self._db.execute(
            "SELECT h.create_revision, h.version FROM current c JOIN history h ON h.seq = c.seq WHERE c.key = ?", (key,)
        ).fetchone()
        created, version = row or (revision, 0)
        self._append(revision, key, value, created, version + 1, lease, deleted=False)
        self._db.execute("INSERT OR REPLACE INTO current VALUES (?, last_insert_rowid())", (key,))

    def _delete(self, revision: int, keys: Sequence[bytes]) -> list[bytes]:
        gone = [key for key in keys if self._db.execute("DELETE FROM current WHERE key = ?", (key,)).rowcount]
        for key in gone:
            self._append(revision, key, b"", 0, 0, 0, deleted=True)
        return gone

    def _append(
        self, revision: int, key: bytes, value: bytes, created: int, version: int, lease: int, *, deleted: bool
    ) -> None:
        self._db.execute(
            "INSERT INTO history (revision, key, value, create_revision, version, lease, deleted) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (revision, key, value, created, version, lease, deleted),
        )

    def _close_revision(self, before: int, keys: Sequence[bytes]) -> Changes:
        """Count the revision if anything changed, and let go of history that is too old."""
        if not keys:
            return Changes(before)
        self._db.execute("UPDATE state SET revision = ?", (before + 1,))
        _, compacted = self.revisions()
        if before + 1 - compacted >= self._keep + COMPACT_STEP:
            self._forget(compacted, compacted + COMPACT_STEP)
        return Changes(before + 1, tuple(keys))

    def _forget(self, compacted: int, revision: int) -> None:
        """Drop what was superseded in (compacted, revision], then what was deleted before `revision`."""
        self._db.execute(
            "DELETE FROM history WHERE seq IN (SELECT old.seq FROM history new JOIN history old "
            "ON old.key = new.key AND old.revision < new.revision WHERE new.revision > ? AND new.revision <= ?)",
            (compacted, revision),
        )
        self._db.execute("DELETE FROM history WHERE revision >= ? AND revision < ? AND deleted", (compacted, revision))
        self._db.execute("UPDATE state SET compacted = ?", (revision,))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with translated():
            self._db.execute("BEGIN IMMEDIATE")
        try:
            with translated():
                yield
            with translated(committing=True):
                self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                with translated():
                    self._db.execute("ROLLBACK")


def _between(prefix: bytes, start_after: bytes) -> tuple[str, list[bytes | int]]:
    """A condition on a column (to be filled in) for keys with `prefix` after `start_after`, and its values."""
    end = prefix_end(prefix)
    where = ["{0} > ?" if start_after >= prefix and start_after else "{0} >= ?"]
    bounds: list[bytes | int] = [max(prefix, start_after)]
    if end:
        where.append("{0} < ?")
        bounds.append(end)
    return " AND ".join(where), bounds


def _entry(row: Sequence[object]) -> Entry:
    key, value, created, revision, version, lease = row
    return Entry(decode(key), value, created, revision, version, lease)  # type: ignore[arg-type]
