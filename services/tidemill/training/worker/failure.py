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
    """The error in at most 4096 characters: its text, and its last frames unless the text says it all."""
    if is_final(error):
        return str(error)[:MAX_TEXT]
    head = f"{type(error).__name__}: {str(error)[:1024]}"
    frames = "".join(traceback.format_tb(error.__traceback__))
    room = MAX_TEXT - len(head) - 2
    return f"{head}\n{frames if len(frames) <= room else '…' + frames[-room:]}"
