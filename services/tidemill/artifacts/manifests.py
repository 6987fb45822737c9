"""Manifests: what an artifact is, as bytes that are the same for the same content."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tidemill import names
from tidemill.errors import DataLoss, Invalid, invalid

VERSION = 1
MAX_FILES = 1000
MAX_LABELS = 64
MAX_LABEL = 1024
DEFAULT_MEDIA_TYPE = "application/octet-stream"
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+(;[ -~]*)?")


@dataclass(frozen=True, slots=True)
class File:
    """One file of an artifact: its path, the blob that holds its bytes, their number, and their media type."""

    path: str
    sha256: str
    size: int
    media_type: str = DEFAULT_MEDIA_TYPE


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of an artifact; `files` are sorted by path."""

    kind: str
    files: tuple[File, ...]
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def blobs(self) -> list[str]:
        """Digests of the blobs, each once, sorted."""
        return sorted({file.sha256 for file in self.files})


def check(kind: str, files: Sequence[File], labels: Mapping[str, str]) -> Manifest:
    """The manifest of these parts, its files sorted; their sizes are not looked at.

    Raises:
        Invalid: a name, path, digest, media type or label breaks a rule; the violation names the field.
    """
    names.check(kind, "artifact.kind")
    if not 1 <= len(files) <= MAX_FILES:
        raise invalid("artifact.files", f"must be 1 to {MAX_FILES} files")
    for file in files:
        names.check_path(file.path, "artifact.files.path")
        names.check_digest(file.sha256, "artifact.files.sha256")
        if len(file.media_type) > 128 or not _MEDIA_TYPE.fullmatch(file.media_type):
            raise invalid("artifact.files.media_type", "must be like application/octet-stream, at most 128 characters")
    ordered = tuple(sorted(files, key=lambda file: file.path))
    _check_tree([file.path for file in ordered])
    if len(labels) > MAX_LABELS:
        raise invalid("artifact.labels", f"must be at most {MAX_LABELS}")
    for key, value in labels.items():
        names.check(key, "artifact.labels")
        if len(value) > MAX_LABEL:
            raise invalid("artifact.labels", f"{key}: must have at most {MAX_LABEL} characters")
    return Manifest(kind, ordered, dict(labels))


def _check_tree(paths: list[str]) -> None:
    """Refuse what cannot be written as a tree of files."""
    taken = set(paths)
    if len(taken) < len(paths):
        raise invalid("artifact.files.path", "no path may occur twice")
    for path in paths:
        parts = path.split("/")
        for end in range(1, len(parts)):
            if "/".join(parts[:end]) in taken:
                raise invalid("artifact.files.path", f"{'/'.join(parts[:end])[:80]!r} is a file and a folder")


def encode(manifest: Manifest) -> bytes:
    """The canonical bytes: JSON in UTF-8, keys sorted, no spaces, files in order of path."""
    content = {
        "version": VERSION,
        "kind": manifest.kind,
        "files": [
            {"path": file.path, "sha256": file.sha256, "size": file.size, "media_type": file.media_type}
            for file in manifest.files
        ],
        "labels": dict(manifest.labels),
    }
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(data: bytes) -> str:
    """The digest of an artifact with these manifest bytes."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, artifact: str) -> Manifest:
    """The manifest of `artifact` from its stored bytes.

    Raises:
        DataLoss: with reason MANIFEST_DAMAGED, when they are not the bytes that have this digest, or not of a version
            that this release knows.
    """
    if digest(data) != artifact:
        raise DataLoss(
            f"the stored manifest of artifact {artifact} has another digest",
            reason="MANIFEST_DAMAGED",
            metadata={"artifact": artifact},
        )
    try:
        content = json.loads(data)
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}")
        files = [File(file["path"], file["sha256"], int(file["size"]), file["media_type"]) for file in content["files"]]
        return check(content["kind"], files, content["labels"])
    except (ValueError, KeyError, TypeError, AttributeError, Invalid) as error:
        raise DataLoss(
            f"the manifest of artifact {artifact} is not one that this release can read",
            reason="MANIFEST_UNREADABLE",
            metadata={"artifact": artifact},
        ) from error
