"""Etags: the store's revision in quotes."""

from tidemill.errors import Stale


def of(revision: int) -> str:
    """The etag of a resource last written at `revision`."""
    return f'"{revision}"'


def check(given: str, revision: int, resource: str) -> None:
    """Return when `given` is empty or the etag of `revision`.

    Raises:
        Stale: with reason ETAG_MISMATCH; revision 0 stands for a resource that does not exist.
    """
    if given and given != (of(revision) if revision else "*"):
        raise Stale(
            f"{resource} has changed: read it again and repeat with its new etag",
            reason="ETAG_MISMATCH",
            metadata={"resource": resource, "etag": of(revision) if revision else ""},
        )
