"""What etcd's and gRPC's errors mean to the callers of a key-value store."""

import grpc

from tidemill.errors import (
    DataLoss,
    Exhausted,
    FailedPrecondition,
    Internal,
    Invalid,
    NotFound,
    OutOfRange,
    PermissionDenied,
    TidemillError,
    Unauthenticated,
    Unavailable,
)

_TOKEN = ("invalid auth token", "revision of auth store is old", "user name is empty")
_NOT_SENT_ON = ("etcdserver: no leader", "etcdserver: not capable", "etcdserver: rpc not supported for learner")
_TRANSIENT = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
)


class ReplyTooLarge(Exception):
    """The reply is larger than the client accepts: ask for less."""


def is_token_refused(text: str) -> bool:
    """Whether the server refused the token, and not what was asked for: nothing was applied, a new token may help."""
    return any(words in text for words in _TOKEN)


def details(error: grpc.aio.AioRpcError) -> str:
    """The error's text."""
    return error.details() or error.code().name


def translate(error: grpc.aio.AioRpcError, *, write: bool = False) -> Exception:
    """The exception that the caller of `Kv` gets.

    Args:
        error: what gRPC raised.
        write: whether the request may have changed the store. Then an end of the connection, a timeout or an unclear
            answer leave the outcome unknown, and the reason says so.
    """
    code, text = error.code(), details(error)
    if code in _TRANSIENT:
        if write and not any(words in text for words in _NOT_SENT_ON):
            return Unavailable(f"the store did not say whether the write was applied: {text}", reason="OUTCOME_UNKNOWN")
        return Unavailable(f"the store is unavailable: {text}")
    if is_token_refused(text) or "authentication failed" in text or code is grpc.StatusCode.UNAUTHENTICATED:
        return Unauthenticated(f"the store does not accept the user: {text}", reason="STORE_LOGIN_REFUSED")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        if "larger than max" in text:
            return ReplyTooLarge(text)
        return Exhausted(text, reason="STORE_FULL" if "space exceeded" in text else None)
    if code is grpc.StatusCode.OUT_OF_RANGE:
        return OutOfRange(text, reason="COMPACTED" if "compacted" in text else "FUTURE_REVISION")
    if code is grpc.StatusCode.NOT_FOUND and "lease" in text:
        return NotFound("the lease has ended", reason="LEASE_NOT_FOUND")
    kind, reason = _REST.get(code, (Internal, None))
    return kind(f"the store refused: {text}", reason=reason)


_REST: dict[grpc.StatusCode, tuple[type[TidemillError], str | None]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (Invalid, None),
    grpc.StatusCode.NOT_FOUND: (NotFound, None),
    grpc.StatusCode.PERMISSION_DENIED: (PermissionDenied, None),
    grpc.StatusCode.FAILED_PRECONDITION: (FailedPrecondition, None),
    grpc.StatusCode.DATA_LOSS: (DataLoss, "STORE_CORRUPT"),
    grpc.StatusCode.UNIMPLEMENTED: (FailedPrecondition, "NOT_A_STORE"),
}
