"""Errors as models give and get them."""

from enum import IntEnum
from typing import ClassVar

from tidemill.errors import Code, TidemillError
from tidemill.inference.isolation.faults import Fault, from_fault

REASON = "MODEL_ERROR"


class _Code(IntEnum):
    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


_CODES = {
    _Code.UNKNOWN: Code.UNKNOWN,
    _Code.INTERNAL: Code.INTERNAL,
    _Code.NOT_FOUND: Code.NOT_FOUND,
    _Code.INVALID_ARG: Code.INVALID_ARGUMENT,
    _Code.UNAVAILABLE: Code.UNAVAILABLE,
    _Code.UNSUPPORTED: Code.UNIMPLEMENTED,
    _Code.ALREADY_EXISTS: Code.ALREADY_EXISTS,
    _Code.CANCELLED: Code.CANCELLED,
}
_BACK = {ours: theirs for theirs, ours in _CODES.items()}


class TritonModelException(Exception):
    """Something that a model did wrong, or could not be done for it."""


class TritonError:
    """An error as part of a response.

    Args:
        message: for the caller.
        code: what kind of error it is; one of the constants of this class.
    """

    UNKNOWN: ClassVar[_Code] = _Code.UNKNOWN
    INTERNAL: ClassVar[_Code] = _Code.INTERNAL
    NOT_FOUND: ClassVar[_Code] = _Code.NOT_FOUND
    INVALID_ARG: ClassVar[_Code] = _Code.INVALID_ARG
    UNAVAILABLE: ClassVar[_Code] = _Code.UNAVAILABLE
    UNSUPPORTED: ClassVar[_Code] = _Code.UNSUPPORTED
    ALREADY_EXISTS: ClassVar[_Code] = _Code.ALREADY_EXISTS
    CANCELLED: ClassVar[_Code] = _Code.CANCELLED

    def __init__(self, message: str, code: int = _Code.INTERNAL) -> None:
        self._message = str(message)
        self._code = _Code(code)

    def message(self) -> str:
        """The text."""
        return self._message

    def code(self) -> int:
        """The kind of error."""
        return self._code

    def __str__(self) -> str:
        return self._message


def to_fault(error: TritonError | str) -> Fault:
    """How an error of the model goes to the server."""
    if not isinstance(error, TritonError):
        error = TritonError(str(error))
    return [_CODES[_Code(error.code())].name, REASON, error.message()]


def to_error(fault: Fault) -> TritonError:
    """How an error of the server reaches the model."""
    found: TidemillError = from_fault(fault)
    return TritonError(found.message, _BACK.get(found.code, _Code.INTERNAL))
