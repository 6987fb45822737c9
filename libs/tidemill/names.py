"""The one validator of names, and resource names built from them.

Every name that a user can choose (model, alias, job, group, file, tag ...) passes `check`, in every front door.
A name is never joined to a path: what a user sends is stored under its digest, or under a name checked here.
"""

import re

from tidemill.errors import Invalid, invalid

MAX_LENGTH = 128
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RULE = "must be 1 to 128 of A-Z a-z 0-9 . _ -, start with a letter or digit, and hold no '..'"


def is_name(value: str) -> bool:
    """Whether `value` is a valid name."""
    return _NAME.fullmatch(value) is not None and ".." not in value


def check(value: str, field: str = "name") -> str:
    """`value` itself when it is a valid name.

    Raises:
        Invalid: with reason INVALID_NAME, naming `field`.
    """
    if not value:
        raise invalid(field, "must not be empty", reason="INVALID_NAME")
    if not is_name(value):
        shown = value if len(value) <= 40 else value[:40] + "…"
        raise invalid(field, f"{shown!r} {_RULE}", reason="INVALID_NAME")
    return value


def check_digest(value: str, field: str = "digest") -> str:
    """`value` itself when it is a SHA-256 in 64 lower-case hexadecimal digits.

    Raises:
        Invalid: with reason INVALID_DIGEST, naming `field`.
    """
    if not _DIGEST.fullmatch(value):
        raise invalid(field, "must be a SHA-256 as 64 lower-case hexadecimal digits", reason="INVALID_DIGEST")
    return value


def check_path(value: str, field: str = "path") -> str:
    """`value` itself when it is a relative path of at most 8 valid names joined by '/'.

    Such paths name files inside a manifest; they are never opened on a server.
    """
    parts = value.split("/")
    if len(parts) > 8 or len(value) > 512:
        raise invalid(field, "must have at most 8 parts and 512 characters", reason="INVALID_NAME")
    for part in parts:
        check(part, field)
    return value


def join(*pairs: tuple[str, str]) -> str:
    """A resource name: `join(("models", "digits"), ("versions", "3"))` is `models/digits/versions/3`."""
    return "/".join(f"{collection}/{check(identifier, collection)}" for collection, identifier in pairs)


def split(name: str, *collections: str, field: str = "name") -> tuple[str, ...]:
    """The identifiers in a resource name: `split("models/m/versions/3", "models", "versions")` is `("m", "3")`.

    Raises:
        Invalid: when `name` does not have exactly this pattern.
    """
    parts = name.split("/", 2 * len(collections))
    pattern = "/".join(f"{c}/{{{c.rstrip('s')}}}" for c in collections)
    if len(parts) != 2 * len(collections) or tuple(parts[::2]) != collections:
        shown = name if len(name) <= 80 else name[:80] + "…"
        raise Invalid(
            f"{field}: {shown!r} does not match {pattern}",
            reason="INVALID_NAME",
            violations={field: f"must match {pattern}"},
        )
    return tuple(check(part, field) for part in parts[1::2])
