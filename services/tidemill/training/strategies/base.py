"""What a strategy is: how the workers of a job turn their gradients into the next parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

Flat = np.ndarray[tuple[int], np.dtype[np.float32]]
"""All parameters of a model, or a gradient of all of them, one tensor after the other."""


class ParameterServer(Protocol):
    """What a strategy needs of a parameter server: one group on its shards.

    Errors are those of `tidemill.errors`; while a shard is out of reach, calls are repeated for a while.
    """

    def create(
        self, tensors: Sequence[tuple[str, tuple[int, ...]]], optimizer: str, options: Mapping[str, Any]
    ) -> None:
        """Create the group; the same again changes nothing."""

    def load(self, values: Flat) -> None:
        """Set the first values; the same again changes nothing."""

    def push(self, gradient: Flat, *, step: int, samples: int) -> None:
        """Hand in this worker's mean gradient over `samples` samples; the same again changes nothing."""

    def pull(self, version: int) -> Flat:
        """The parameters at a version, once it is there; the version before the latest is still there."""

    def versions(self) -> Sequence[int]:
        """The version of each shard; NotFound while the group is not on all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """What a strategy knows of its job: who this worker is, what is trained, and whom to ask."""

    rank: int
    workers: int
    tensors: Sequence[tuple[str, tuple[int, ...]]]
    """Name and shape of each tensor, in the order of the flat vector."""
    optimizer: str
    optimizer_options: Mapping[str, Any]
    server: ParameterServer
    pause: Callable[[float], None]
    """Waits so many seconds; raises when the worker is to stop."""


class Strategy(ABC):
    """One worker's end of the exchange. The first sentence of a subclass's docstring is its description.

    The version of the parameters is the number of steps that were applied to them. Every worker of a job must see the
    same parameters at the same version, also one that replaces a dead worker. Blocking calls end with an error when the
    connections of the team are closed.
    """

    def __init__(self, team: Team) -> None:
        self.team = team

    @abstractmethod
    def join(self, first: Callable[[], Flat]) -> tuple[int, Flat]:
        """Begin, or go on where a dead worker stopped.

        Args:
            first: makes the first values, the same ones whenever and wherever it is called.

        Returns:
            The step to go on with, and the parameters that it starts from.
        """

    @abstractmethod
    def exchange(self, step: int, gradient: Flat, samples: int) -> Flat:
        """The parameters after `step`, to which this worker gives its mean gradient over `samples` samples.

        A worker without samples takes part all the same, with a gradient of zeros. Returns when all workers have given
        theirs; a worker may therefore wait in a step that is never finished, and is stopped then.
        """
