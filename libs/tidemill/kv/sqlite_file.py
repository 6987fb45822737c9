"""The file of a SQLite store: its lock, and what SQLite's errors mean."""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tidemill.errors import DataLoss, Exhausted, FailedPrecondition, Internal, Unavailable

_INPUT_OUTPUT = (
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
)


def lock_file(path: Path) -> int:
    """An open, locked lock file beside `path`; it is never removed, because that would let two in."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(f"cannot open {path}: {error.strerror}", reason="STORE_IO") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Only now: closing any descriptor of the file would drop the locks of a connection in this process.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except BlockingIOError:
        os.close(lock)
        raise FailedPrecondition(f"{path} is in use by another process", reason="STORE_IN_USE") from None
    except OSError as error:
        os.close(lock)
        raise Unavailable(f"cannot open {path}: {error.strerror}", reason="STORE_IO") from error
    return lock


@contextmanager
def translated(*, committing: bool = False) -> Iterator[None]:
    """Turn SQLite's errors into ours. Only a commit can fail and yet have reached the disk."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        if code == sqlite3.SQLITE_FULL:
            raise Exhausted("the store has no space left", reason="STORE_FULL") from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise DataLoss(f"the store's file is damaged ({name})", reason="STORE_CORRUPT") from error
        if code in _INPUT_OUTPUT:
            reason = "OUTCOME_UNKNOWN" if committing else "STORE_IO"
            raise Unavailable(f"the store's file cannot be used ({name})", reason=reason) from error
        raise Internal(f"unexpected answer of SQLite ({name})") from error
