"""The catalogue of errors that Tidemill raises, free of any transport.

    TidemillError
    ├── Invalid             the caller's input is wrong          INVALID_ARGUMENT
    ├── NotFound            the named thing does not exist        NOT_FOUND
    ├── AlreadyExists       the name is taken                     ALREADY_EXISTS
    ├── FailedPrecondition  the thing's state forbids the call    FAILED_PRECONDITION
    ├── Stale               an etag, epoch or revision moved on   ABORTED
    ├── OutOfRange          an offset or revision is gone         OUT_OF_RANGE
    ├── Exhausted           a limit or a bounded queue is full    RESOURCE_EXHAUSTED
    ├── Unavailable         try again later                       UNAVAILABLE
    ├── DeadlineExceeded    the caller's time is over             DEADLINE_EXCEEDED
    ├── Cancelled           the caller gave up                    CANCELLED
    ├── Unauthenticated     who are you                           UNAUTHENTICATED
    ├── PermissionDenied    you may not                           PERMISSION_DENIED
    ├── Unimplemented       not offered here                      UNIMPLEMENTED
    ├── DataLoss            stored bytes are not what they were   DATA_LOSS
    └── Internal            a fault of ours                       INTERNAL

Domain code raises these; `tidemill.rpc.status` alone turns them into a `google.rpc.Status`
and back, and the gateway turns that into a problem document.
"""

from collections.abc import Mapping
from enum import Enum

MAX_TEXT = 1024
"""Longest message, in characters, that leaves a process: trailers are limited to 8 KiB."""


class Code(Enum):
    """Canonical status codes; names and numbers are those of `google.rpc.Code`."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class TidemillError(Exception):
    """An error with a canonical code, a machine-readable reason and a text for people.

    Args:
        message: one actionable sentence; cut at `MAX_TEXT` characters.
        reason: UPPER_SNAKE identifier, stable over releases; the class's own by default.
        metadata: the variable parts of the message, for programs.
        violations: offending request field -> what is wrong with it.
        retry_after: seconds after which a retry may succeed, if that is known.
    """

    code = Code.UNKNOWN
    default_reason = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Mapping[str, str] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message if len(message) <= MAX_TEXT else message[: MAX_TEXT - 1] + "…")
        self.reason = reason or self.default_reason
        self.metadata = dict(metadata or {})
        self.violations = dict(violations or {})
        self.retry_after = retry_after

    @property
    def message(self) -> str:
        """The text for people."""
        return str(self.args[0])


class Invalid(TidemillError):
    """The caller's input is wrong and will be wrong next time too."""

    code = Code.INVALID_ARGUMENT
    default_reason = "INVALID_ARGUMENT"


def invalid(field: str, problem: str, *, reason: str | None = None) -> Invalid:
    """An `Invalid` about one request field, named in the message and as a violation."""
    return Invalid(f"{field}: {problem}", reason=reason, violations={field: problem})


class NotFound(TidemillError):
    """The named thing does not exist."""

    code = Code.NOT_FOUND
    default_reason = "NOT_FOUND"


class AlreadyExists(TidemillError):
    """The name is taken."""

    code = Code.ALREADY_EXISTS
    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(TidemillError):
    """The thing exists, but its state forbids the call."""

    code = Code.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class Stale(TidemillError):
    """The etag, epoch or revision that the caller holds has moved on: read again."""

    code = Code.ABORTED
    default_reason = "STALE"


class OutOfRange(TidemillError):
    """An offset or a revision that is not there, or not there any more."""

    code = Code.OUT_OF_RANGE
    default_reason = "OUT_OF_RANGE"


class Exhausted(TidemillError):
    """A limit is reached or a bounded queue is full."""

    code = Code.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"


class Unavailable(TidemillError):
    """A dependency cannot be reached now; the same call may succeed later."""

    code = Code.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class DeadlineExceeded(TidemillError):
    """The time the caller gave is over."""

    code = Code.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(TidemillError):
    """The caller gave up."""

    code = Code.CANCELLED
    default_reason = "CANCELLED"


class Unauthenticated(TidemillError):
    """The caller did not say who it is, or not credibly."""

    code = Code.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(TidemillError):
    """The caller may not do this."""

    code = Code.PERMISSION_DENIED
    default_reason = "PERMISSION_DENIED"


class Unimplemented(TidemillError):
    """Declared, but not offered by this server."""

    code = Code.UNIMPLEMENTED
    default_reason = "UNIMPLEMENTED"


class DataLoss(TidemillError):
    """Stored bytes are not what was stored."""

    code = Code.DATA_LOSS
    default_reason = "DATA_LOSS"


class Internal(TidemillError):
    """A fault of ours; the detail is in the log under the request id."""

    code = Code.INTERNAL
    default_reason = "INTERNAL"


BY_CODE: dict[Code, type[TidemillError]] = {
    kind.code: kind
    for kind in (
        Invalid,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        Stale,
        OutOfRange,
        Exhausted,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        Unauthenticated,
        PermissionDenied,
        Unimplemented,
        DataLoss,
        Internal,
    )
}
"""The exception class of each code that has one."""
