"""What every key-value store accepts, and how keys become bytes: the same for all implementations."""

import math
from collections.abc import Sequence

from tidemill.errors import Invalid, invalid
from tidemill.kv.base import Compare, Delete, Operation, Put

MAX_OPERATIONS = 128
"""Most guards, and most operations, of one transaction (etcd's default)."""
MAX_KEY_BYTES = 1024
"""Longest key in UTF-8."""
MAX_TXN_BYTES = 1 << 20
"""Most bytes of keys and values in one transaction; etcd refuses requests above 1.5 MiB."""
MAX_TTL = 1e9
"""Longest time to live of a lease, in seconds."""


def encode(key: str) -> bytes:
    """The bytes of a key or prefix; their order is the order of keys.

    Raises:
        Invalid: when the key is longer than `MAX_KEY_BYTES` or not encodable.
    """
    try:
        raw = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise invalid("key", "is not valid Unicode", reason="INVALID_KEY") from None
    if len(raw) > MAX_KEY_BYTES:
        raise invalid("key", f"must have at most {MAX_KEY_BYTES} bytes, not {len(raw)}", reason="INVALID_KEY")
    return raw


def decode(raw: bytes) -> str:
    """The key of these bytes; those that are not UTF-8, which others may have written, survive the way back."""
    return raw.decode("utf-8", "surrogateescape")


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys with this prefix; empty when there is none, which is so for the empty prefix."""
    kept = prefix.rstrip(b"\xff")
    return kept[:-1] + bytes([kept[-1] + 1]) if kept else b""


def check_key(key: str) -> str:
    """`key` itself when it can be written or read.

    Raises:
        Invalid: when it is empty, too long or not encodable.
    """
    if not encode(key):
        raise invalid("key", "must not be empty", reason="INVALID_KEY")
    return key


def check_ttl(ttl: float) -> float:
    """`ttl` itself when it is a time that a lease can live.

    Raises:
        Invalid: when it is below one second, above `MAX_TTL` or not a number.
    """
    if not (math.isfinite(ttl) and 1 <= ttl <= MAX_TTL):
        raise invalid("ttl", f"must be between 1 and {MAX_TTL:.0f} seconds, not {ttl}", reason="INVALID_TTL")
    return ttl


def check_revision(revision: int, field: str) -> int:
    """`revision` itself when it can be one.

    Raises:
        Invalid: when it is below 1.
    """
    if revision < 1:
        raise invalid(field, f"must be at least 1, not {revision}", reason="INVALID_REVISION")
    return revision


def check_range(start_after: str, limit: int, revision: int) -> None:
    """Check the options of a range read.

    Raises:
        Invalid: when one is out of its range.
    """
    encode(start_after)
    if limit < 0:
        raise invalid("limit", f"must not be negative, not {limit}")
    if revision < 0:
        raise invalid("revision", f"must not be negative, not {revision}", reason="INVALID_REVISION")


def check_txn(compares: Sequence[Compare], operations: Sequence[Operation]) -> None:
    """Check a transaction as etcd would, and a little more strictly.

    Raises:
        Invalid: when it is too large, a guard says nothing, or a key occurs twice in `operations`.
    """
    for name, items in (("compares", compares), ("operations", operations)):
        if len(items) > MAX_OPERATIONS:
            raise invalid(name, f"must be at most {MAX_OPERATIONS}, not {len(items)}", reason="TOO_LARGE")
    size = 0
    for compare in compares:
        size += len(check_key(compare.key))
        if compare.mod_revision is None and compare.create_revision is None:
            raise invalid("compares", f"the guard of {compare.key!r} names no revision")
    for operation in operations:
        if isinstance(operation, Put):
            size += len(encode(check_key(operation.key))) + len(operation.value)
            if operation.lease < 0:
                raise invalid("lease", f"must not be negative, not {operation.lease}")
        else:
            size += len(encode(operation.key if operation.prefix else check_key(operation.key)))
    if size > MAX_TXN_BYTES:
        raise invalid("operations", f"must hold at most {MAX_TXN_BYTES} bytes, not {size}", reason="TOO_LARGE")
    _check_once(operations)


def _check_once(operations: Sequence[Operation]) -> None:
    prefixes = [op.key for op in operations if isinstance(op, Delete) and op.prefix]
    keys = [op.key for op in operations if not (isinstance(op, Delete) and op.prefix)]
    twice = {key for key in keys if keys.count(key) > 1} | {
        key for key in keys if any(key.startswith(prefix) for prefix in prefixes)
    }
    for i, prefix in enumerate(prefixes):
        if any(prefix.startswith(other) for j, other in enumerate(prefixes) if i != j):
            twice.add(prefix)
    if twice:
        raise Invalid(
            f"operations: {min(twice)!r} occurs more than once",
            reason="DUPLICATE_KEY",
            violations={"operations": "a key may occur only once"},
        )
