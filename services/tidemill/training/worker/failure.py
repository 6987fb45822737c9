"""What a worker says when it cannot go on."""

import traceback

from tidemill import errors

MAX_TEXT = 4096
"""Longest description, in characters."""
MAX_TRACEBACK = 8192
"""Longest traceback, in bytes of UTF-8."""
MAX_PART = 1000
"""Longest part of it, a message or a frame, in characters: a long message must not cost the frames."""
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


STRAGGLERS = "STRAGGLERS"
"""Reason of the error of a group that has ended because workers were late."""


def is_final(error: BaseException) -> bool:
    """Whether a new worker would meet the same error again."""
    return isinstance(error, FINAL) or (isinstance(error, errors.TidemillError) and error.reason == STRAGGLERS)


def describe(error: BaseException) -> str:
    """The error in at most 4096 characters."""
    text = str(error) if isinstance(error, errors.TidemillError) else f"{type(error).__name__}: {error}"
    return text[:MAX_TEXT]


def trace(error: BaseException) -> str:
    """Where in the code the error has happened, with what has led to it, in at most 8 KiB; of more, the end.

    Empty for errors that were foreseen: their text says what is wrong.
    """
    if isinstance(error, errors.TidemillError):
        return ""
    parts = (part if len(part) <= MAX_PART else f"{part[:MAX_PART]}…\n" for part in traceback.format_exception(error))
    whole = "".join(parts).encode("utf-8", "replace")
    if len(whole) <= MAX_TRACEBACK:
        return whole.decode()
    cut = "…\n"
    return cut + whole[len(cut.encode()) - MAX_TRACEBACK :].decode("utf-8", "ignore")
