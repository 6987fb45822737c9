"""Which files an artifact lists, kept on the local disk."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tidemill import names
from tidemill.inference.files import write_atomically


@dataclass(frozen=True, slots=True)
class File:
    """One file of an artifact; `sha256` and `size` are of its bytes."""

    path: str
    sha256: str
    size: int


class ManifestCache:
    """A directory with one small file an artifact, which begins with the digest of the rest of it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def read(self, artifact: str) -> tuple[File, ...] | None:
        """The files of an artifact; None when they are not known here, or what is here is damaged."""
        try:
            checksum, _, body = self._path(artifact).read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            return None
        return tuple(File(*entry) for entry in json.loads(body))

    def write(self, artifact: str, files: tuple[File, ...]) -> None:
        """Remember the files of an artifact."""
        body = json.dumps([[file.path, file.sha256, file.size] for file in files]).encode()
        write_atomically(self._path(artifact), hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    def prune(self, needed: Callable[[str], bool]) -> None:
        """Forget the artifacts that are not needed."""
        for path in self._directory.iterdir():
            if not needed(path.name):
                path.unlink(missing_ok=True)

    def _path(self, artifact: str) -> Path:
        return self._directory / names.check_digest(artifact, "artifact")
