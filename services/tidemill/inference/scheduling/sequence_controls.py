"""The inputs by which a model is told what a request is to its sequence."""

from collections.abc import Mapping

import numpy as np

from tidemill.errors import Invalid
from tidemill.inference.calls import Array, Call
from tidemill.inference.configuration import Control, ControlKind
from tidemill.tensors.dtypes import DataType

MAX_STRING = 128
"""Most bytes of a correlation id that is a string."""
_LARGEST = 2**64 - 1


class Controls:
    """Fills the control inputs of one model.

    Args:
        controls: as configured.
        batched: whether the model's tensors have the dimension of a batch.
    """

    def __init__(self, controls: tuple[Control, ...], *, batched: bool) -> None:
        self._shape = (1, 1) if batched else (1,)
        self._flags = [
            (control.name, control.kind, self._flag(control, control.false), self._flag(control, control.true))
            for control in controls
            if control.kind is not ControlKind.CORRID
        ]
        self._ids = [(control.name, control.datatype) for control in controls if control.kind is ControlKind.CORRID]

    def check(self, correlation: int | str, model: str) -> None:
        """Return when a request may belong to the sequence of this name.

        Raises:
            Invalid: it names none, or one that is no correlation id, or does not fit into the model's input for it.
        """
        if not correlation:
            raise Invalid(
                f"inference request to model '{model}' must specify a non-zero or non-empty correlation ID",
                reason="NO_CORRELATION_ID",
            )
        if isinstance(correlation, str):
            size = len(correlation.encode())
            if size > MAX_STRING:
                raise self._unfit(model, f"has a correlation ID of {size} bytes; it may have {MAX_STRING}")
        elif not 0 <= correlation <= _LARGEST:
            raise self._unfit(model, f"must specify a correlation ID from 1 to {_LARGEST}")
        for _, datatype in self._ids:
            self._check_type(correlation, datatype, model)

    def inputs(self, call: Call) -> dict[str, Array]:
        """The control inputs of a request, each of one row."""
        return self._filled(
            {ControlKind.START: call.starts, ControlKind.READY: True, ControlKind.END: call.ends}, call.correlation
        )

    def blank(self, correlation: int | str) -> dict[str, Array]:
        """The control inputs of a row without a request; `correlation` is the sequence it is kept for, 0 = none."""
        return self._filled({}, correlation)

    def _filled(self, flags: Mapping[ControlKind, bool], correlation: int | str) -> dict[str, Array]:
        found = {name: true if flags.get(kind) else false for name, kind, false, true in self._flags}
        for name, datatype in self._ids:
            value: object = correlation
            if datatype is DataType.BYTES:
                value = correlation.encode() if isinstance(correlation, str) else b""
            found[name] = np.full(self._shape, value, datatype.numpy)
        return found

    def _flag(self, control: Control, value: float) -> Array:
        return np.full(self._shape, value, control.datatype.numpy)

    def _check_type(self, correlation: int | str, datatype: DataType, model: str) -> None:
        if datatype is DataType.BYTES:
            if not isinstance(correlation, str):
                raise self._unfit(model, "has an integer correlation ID, but the model's CORRID control takes strings")
        elif isinstance(correlation, str):
            raise self._unfit(
                model, f"has a string correlation ID, but the model's CORRID control is of type {datatype.name}"
            )
        elif correlation > np.iinfo(datatype.numpy).max:
            raise self._unfit(model, f"has a correlation ID too large for its CORRID control, {datatype.name}")

    def _unfit(self, model: str, problem: str) -> Invalid:
        return Invalid(f"inference request to model '{model}' {problem}", reason="WRONG_CORRELATION_ID")
