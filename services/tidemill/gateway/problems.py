"""The one place where errors become HTTP statuses and problem documents (RFC 9457)."""

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from tidemill.errors import Code, TidemillError

MEDIA_TYPE = "application/problem+json"
CLIENT_CLOSED = 499
"""Not registered, but what many servers log for a caller that hung up."""

STATUSES: dict[Code, int] = {
    Code.INVALID_ARGUMENT: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.FAILED_PRECONDITION: 409,
    Code.ABORTED: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: CLIENT_CLOSED,
    Code.UNKNOWN: 500,
    Code.INTERNAL: 500,
    Code.DATA_LOSS: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}
"""HTTP status of each canonical code in the management API."""


class Refused(TidemillError):
    """A request that HTTP itself has a status for, whatever the protocol above.

    Args:
        status: the HTTP status.
        message: one actionable sentence.
        reason: UPPER_SNAKE identifier.
        headers: response headers that belong to the status.
        metadata: the variable parts of the message, for programs.
    """

    code = Code.INVALID_ARGUMENT

    def __init__(
        self,
        status: int,
        message: str,
        *,
        reason: str,
        headers: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.status = status
        self.headers = dict(headers or {})


def status_of(error: TidemillError, table: Mapping[Code, int] = STATUSES) -> int:
    """The HTTP status of `error`."""
    return error.status if isinstance(error, Refused) else table[error.code]


def headers_of(error: TidemillError) -> dict[str, str]:
    """The response headers that belong to `error`."""
    headers = dict(error.headers) if isinstance(error, Refused) else {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.code is Code.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    return headers


def document(error: TidemillError, request_id: str) -> dict[str, Any]:
    """The problem document of `error`; members that would say nothing are left out."""
    status = status_of(error)
    title = "Client Closed Request" if status == CLIENT_CLOSED else HTTPStatus(status).phrase
    found: dict[str, Any] = {
        "type": f"urn:tidemill:error:{error.reason}",
        "title": title,
        "status": status,
        "detail": error.message,
        "reason": error.reason,
        "request_id": request_id,
    }
    metadata = {key: value for key, value in error.metadata.items() if key != "request_id"}
    if metadata:
        found["metadata"] = metadata
    if error.violations:
        found["violations"] = [{"field": field, "problem": text} for field, text in error.violations.items()]
    if error.retry_after is not None:
        found["retry_after"] = error.retry_after
    return found


def render(error: TidemillError, request_id: str) -> Response:
    """The response to a request that ended with `error`."""
    body = json.dumps(document(error, request_id), separators=(",", ":"))
    return Response(body, status_of(error), headers_of(error), media_type=MEDIA_TYPE)
