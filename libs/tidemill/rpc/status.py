"""The one place where errors become `google.rpc.Status` and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from tidemill import errors

DOMAIN = "tidemill"
"""`ErrorInfo.domain` of every error that Tidemill makes."""
REQUEST_ID = "x-request-id"
"""Header that carries the id of a request through all services."""
UNEXPECTED = "an unexpected error happened; see the server's log for this request id"


def to_status(error: errors.TidemillError, request_id: str = "") -> status_pb2.Status:
    """`error` as a status with `ErrorInfo`, and with `BadRequest` and `RetryInfo` where they say something."""
    metadata = {key[:64]: value[: errors.MAX_TEXT // 4] for key, value in list(error.metadata.items())[:8]}
    if request_id:
        metadata["request_id"] = request_id
    status = status_pb2.Status(code=error.code.value, message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    status.details.add().Pack(info)
    if error.violations:
        bad = error_details_pb2.BadRequest()
        for field, problem in list(error.violations.items())[:8]:
            bad.field_violations.add(field=field[:128], description=problem[: errors.MAX_TEXT // 4])
        status.details.add().Pack(bad)
    if error.retry_after is not None:
        retry = error_details_pb2.RetryInfo(retry_delay=Duration())
        retry.retry_delay.FromMilliseconds(int(error.retry_after * 1000))
        status.details.add().Pack(retry)
    return status


def from_status(status: status_pb2.Status) -> errors.TidemillError:
    """The error that `to_status` made the status of; statuses of others give the class of their code."""
    reason, metadata, violations, retry_after = None, {}, {}, None
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo.FromString(detail.value)
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest.FromString(detail.value)
            violations = {v.field: v.description for v in bad.field_violations}
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo.FromString(detail.value)
            retry_after = retry.retry_delay.ToMilliseconds() / 1000
    known = code_pb2.Code.values()
    code = errors.Code(status.code) if status.code in known and status.code != 0 else errors.Code.UNKNOWN
    kind = errors.BY_CODE.get(code, errors.TidemillError)
    return kind(status.message, reason=reason, metadata=metadata, violations=violations, retry_after=retry_after)


def from_rpc_error(error: grpc.RpcError) -> errors.TidemillError:
    """The error behind a failed call."""
    call = cast(Any, error)
    try:
        status = rpc_status.from_call(call)
    except ValueError:  # a peer whose details contradict its code: the code counts
        status = None
    if status is None:
        status = status_pb2.Status(code=call.code().value[0], message=call.details() or "")
    return from_status(status)


@contextmanager
def translated() -> Iterator[None]:
    """Turn the `grpc.RpcError` of a call inside into the error of the catalogue that it stands for."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
