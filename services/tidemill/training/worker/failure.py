"""What a worker says when it cannot go on."""

import traceback

from tidemill import errors

MAX_TEXT = 4096
FINAL = (
    errors.Invalid,
    errors.NotFound,
    errors.AlreadyExists,
    errors.FailedPrecondition,
    errors.OutOfRange,
    errors.PermissionDenied,
    errors.Unimplemented,
    errors.DataLoss,
)
"""Errors that a new worker would meet again: its orders, its samples and its seeds are the same."""


def is_final(error: BaseException) -> bool:
    """Whether a new worker would meet the same error again."""
    return isinstance(error, FINAL)


def describe(error: BaseException) -> str:
    """The error in at most 4096 characters: its text, and the end of its traceback unless the text says it all."""
    if is_final(error):
        return str(error)[:MAX_TEXT]
    head = f"{type(error).__name__}: {str(error)[:1024]}"
    trace = "".join(traceback.format_exception(error))
    room = MAX_TEXT - len(head) - 2
    return f"{head}\n{trace if len(trace) <= room else '…' + trace[-room:]}"
