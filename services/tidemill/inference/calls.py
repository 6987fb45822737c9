"""A request on its way through the service, and its answers."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from opentelemetry.context import Context

from tidemill.errors import TidemillError

Array = np.ndarray[Any, Any]
Value: TypeAlias = bool | int | float | str
"""A parameter of a request or an answer."""


def always() -> bool:
    """A caller that never goes away."""
    return True


@dataclass(slots=True, kw_only=True, eq=False)
class Call:
    """One request to one version. Its inputs are checked against the version's signature.

    Args:
        inputs: by name, with the dimension of the batch if the model has one; read only. Types are those of
            `DataType.numpy`: BF16 is widened to float32, BYTES are object arrays of `bytes`.
        outputs: names of the outputs to compute, at least one.
        rows: size of the batch dimension; 1 where the model has none.
        id: the caller's name for the request.
        correlation: the sequence that it belongs to; 0 and "" = none.
        starts, ends: whether it is the first or the last one of its sequence.
        priority: level, 1 being the most urgent; 0 = the model's default.
        patience: longest time in the queue in seconds that the caller asks for; 0 = none.
        expires: when nobody waits for the answer any more, by `time.monotonic()`; None = never.
        alive: whether the caller is still there.
        parameters: further ones of the request, by name.
        instance: which of the model's instances shall run it, counted from 0; None = any.
        trace: context of the request's span; None when it is not recorded.
        arrived: when it came, by `time.monotonic_ns()`.
        started: when it left the queue, by `time.monotonic_ns()`; set by what runs it.
    """

    inputs: Mapping[str, Array]
    outputs: Sequence[str]
    rows: int = 1
    id: str = ""
    correlation: int | str = 0
    starts: bool = False
    ends: bool = False
    priority: int = 0
    patience: float = 0.0
    expires: float | None = None
    alive: Callable[[], bool] = always
    parameters: Mapping[str, Value] = field(default_factory=dict)
    instance: int | None = None
    trace: Context | None = None
    arrived: int = field(default_factory=time.monotonic_ns)
    started: int = 0

    @property
    def wanted(self) -> bool:
        """Whether somebody still waits for the answer."""
        return (self.expires is None or time.monotonic() < self.expires) and self.alive()


@dataclass(slots=True, kw_only=True, eq=False)
class Answer:
    """What came out.

    Args:
        outputs: the wanted outputs by name, in the order of the call's `outputs`; a decoupled model may leave some out.
        parameters: of the answer, by name.
    """

    outputs: Mapping[str, Array]
    parameters: Mapping[str, Value] = field(default_factory=dict)


Receive: TypeAlias = Callable[[Answer | TidemillError | None, bool], None]
"""Takes one reply to a call, and whether it is the last one; None only as the last: there is nothing more to say.

It is called from any thread, by one at a time, and must not block for long."""
