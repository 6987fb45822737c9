"""The keys of the objects that the service keeps.

`blobs/{sha256}`               the bytes of a blob
`manifests/{artifact}`         the manifest of an artifact; while it exists, the artifact exists
`uses/{sha256}/{artifact}`     empty: the artifact may list the blob; it does if its manifest exists
`references/{artifact}/{sha256 of the reference}`   the text of a reference
`deletions/{artifact}`         the manifest of an artifact whose deletion has begun
"""

import hashlib

from tidemill.names import check_digest

BLOBS = "blobs/"
MANIFESTS = "manifests/"
DELETIONS = "deletions/"
REFERENCES = "references/"


def blob(sha256: str) -> str:
    """Key of a blob."""
    return f"{BLOBS}{check_digest(sha256, 'sha256')}"


def manifest(artifact: str) -> str:
    """Key of an artifact's manifest."""
    return f"{MANIFESTS}{check_digest(artifact)}"


def deletion(artifact: str) -> str:
    """Key of the record of an artifact's deletion."""
    return f"{DELETIONS}{check_digest(artifact)}"


def uses(sha256: str) -> str:
    """Prefix of the keys that say which artifacts may list a blob."""
    return f"uses/{check_digest(sha256, 'sha256')}/"


def use(sha256: str, artifact: str) -> str:
    """Key that says that an artifact may list a blob."""
    return f"{uses(sha256)}{check_digest(artifact)}"


def references(artifact: str) -> str:
    """Prefix of the keys of an artifact's references."""
    return f"{REFERENCES}{check_digest(artifact)}/"


def reference(artifact: str, text: str) -> str:
    """Key of one reference to an artifact."""
    return f"{references(artifact)}{digest(text)}"


def digest(text: str) -> str:
    """The SHA-256 of a reference, under which it is kept."""
    return hashlib.sha256(text.encode()).hexdigest()


def last(key: str) -> str:
    """The last digest in a key."""
    return key.rsplit("/", 1)[1]
