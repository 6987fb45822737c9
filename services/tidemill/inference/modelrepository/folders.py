"""Folders of a repository: listed and read within bounds, and never out of the repository."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from tidemill.errors import Invalid, NotFound

MOST_FILES = 20_000
"""Files of one version."""
DEEPEST = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """A file: its size in bytes, and when it was last changed."""

    size: int
    changed: int
    inode: int


def resolved(root: Path, path: Path) -> Path:
    """Where `path` leads.

    Args:
        root: of the repository, resolved.

    Raises:
        Invalid: out of the repository.
        NotFound: to nothing.
    """
    try:
        found = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise NotFound(f"'{path.name}' cannot be read", reason="FILE_MISSING") from error
    if found != root and not found.is_relative_to(root):
        raise Invalid(f"'{path.name}' is a link that leaves the repository", reason="LINK_REFUSED")
    return found


def listing(root: Path, folder: Path) -> dict[str, Entry]:
    """The files below `folder`, by path; names that begin with a dot are left out.

    Raises:
        Invalid: there are too many, or one is a link that leaves the repository.
        NotFound: the folder, or what a link in it points at, is not there.
    """
    found: dict[str, Entry] = {}
    waiting = [(resolved(root, folder), "", 0)]
    while waiting:
        directory, prefix, depth = waiting.pop()
        if depth > DEEPEST:
            raise Invalid(f"the folder is deeper than {DEEPEST}", reason="TOO_LARGE")
        for entry in _scan(directory):
            if entry.name.startswith(".") or (entry.name == "__pycache__" and entry.is_dir()):
                continue
            path = resolved(root, Path(entry.path)) if entry.is_symlink() else Path(entry.path)
            status = path.stat()
            if stat.S_ISDIR(status.st_mode):
                waiting.append((path, f"{prefix}{entry.name}/", depth + 1))
            elif stat.S_ISREG(status.st_mode):
                found[prefix + entry.name] = Entry(status.st_size, status.st_mtime_ns, status.st_ino)
            if len(found) + len(waiting) > MOST_FILES:
                raise Invalid(f"the folder has more than {MOST_FILES} files", reason="TOO_LARGE")
    return found


def subfolders(root: Path, folder: Path) -> list[str]:
    """Names of the folders directly in `folder`, links to folders included. Raises NotFound."""
    found = []
    for entry in _scan(folder):
        try:
            if entry.is_dir():
                found.append(entry.name)
        except OSError:
            continue
    return sorted(found)


def read(root: Path, folder: Path, path: str, limit: int) -> bytes:
    """The bytes of a file below `folder`.

    Raises:
        Invalid: it has more than `limit` bytes, is none, or its path or a link in it leads out of the repository.
        NotFound: it is not there.
    """
    target = resolved(root, folder / path)
    try:
        handle = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"'{path}' cannot be read: {error.strerror}", reason="FILE_MISSING") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise Invalid(f"'{path}' is no file", reason="INVALID_FILE")
        if status.st_size > limit:
            raise Invalid(f"'{path}' has {status.st_size} bytes; at most {limit} are read", reason="TOO_LARGE")
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Invalid(f"'{path}' has grown to more than {limit} bytes", reason="TOO_LARGE")
    return data


def fingerprint(entries: dict[str, Entry], *more: bytes) -> str:
    """A digest that is another one when any of the files has changed, or any of `more`."""
    hashed = hashlib.sha256()
    for path, entry in sorted(entries.items()):
        hashed.update(f"{path}\0{entry.size}\0{entry.changed}\0{entry.inode}\n".encode(errors="surrogateescape"))
    for data in more:
        hashed.update(hashlib.sha256(data).digest())
    return hashed.hexdigest()


def _scan(folder: Path) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise NotFound(f"'{folder.name}' cannot be read: {error.strerror}", reason="FILE_MISSING") from error
