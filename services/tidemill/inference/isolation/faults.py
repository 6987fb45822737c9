"""Errors as they cross the border of a process."""

from typing import TypeAlias

from tidemill.errors import BY_CODE, Code, Internal, TidemillError

Fault: TypeAlias = list[str]
"""An error in a message: [code, reason, text]."""


def to_fault(error: TidemillError) -> Fault:
    """What is said of an error."""
    return [error.code.name, error.reason, error.message]


def from_fault(fault: Fault) -> TidemillError:
    """The error that this was. One whose reason is EXECUTION_FAILED has its text as cause, for the log alone."""
    code, reason, text = fault
    kind = BY_CODE.get(Code[code], Internal)
    if reason == "EXECUTION_FAILED":
        error = kind("the model failed on these inputs", reason=reason)
        error.__cause__ = kind(text)
        return error
    return kind(text, reason=reason)
