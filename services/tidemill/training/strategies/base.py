"""What a strategy is: how the workers of a job turn their gradients into the next parameters."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from tidemill.clients.groupdefinition import Definition
from tidemill.clients.groupstate import GroupState

Flat = np.ndarray[tuple[int], np.dtype[np.float32]]
"""All parameters of a model, or a gradient of all of them, one tensor after the other."""


GROUP_LOST = "GROUP_LOST"
"""Reason of the error of a strategy that cannot go on because shards have lost what is kept in checkpoints."""
CONSTANT = "constant"
"""The schedule of a learning rate that does not change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """What a step does beside the optimizer's."""

    schedule: str = CONSTANT
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 = any."""
    l1: float = 0.0
    """Weight of the parameters' magnitudes in the loss."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Held:
    """The state of a training that parameter shards hold."""

    state: GroupState
    definition: Definition
    """Of the group."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Next:
    """Where a worker goes on after a step."""

    step: int
    """The one after it, unless the others have gone on without this worker."""
    flat: Flat
    """The parameters that it starts from."""
    counts: bool = True
    """Whether what this worker gave to the step before was used."""


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

    def begin(self, gradient: Flat, *, step: int, samples: int) -> Callable[[int, int], None] | None:
        """Prepare the push of a gradient that is about to be computed; `push` or `abandon` follows.

        Returns:
            What is to be told, in any order, that the elements from one position to another are there: they may leave
            at once. None when parts are of no use.
        """

    def abandon(self) -> None:
        """There will be no push of what was begun: no shard has taken anything of it."""

    def push(self, gradient: Flat, *, step: int, samples: int) -> bool:
        """Hand in this worker's mean gradient over `samples` samples; the same again changes nothing.

        What was begun may still be on its way afterwards: then the next pull waits for it, and raises its errors.

        Returns:
            Whether it counts: where late workers are dropped, the step may have been made without it.
        """

    def pull(self, version: int) -> Flat:
        """The parameters at a version, once it is there; the version before the latest is still there.

        Where the workers do not make each step together: at this clock of the worker, as they are once its pushes for
        earlier steps were applied, and nobody is too far behind.
        """

    def latest(self) -> tuple[int, Flat]:
        """The latest version, and the parameters at it."""

    def samples(self) -> int:
        """Samples that were used so far, by all workers."""

    def versions(self) -> Sequence[int]:
        """The version of each shard; NotFound while the group is not on all of them."""

    def clocks(self) -> Sequence[Sequence[int]]:
        """For each shard the step that each worker's next push is for; NotFound as `versions`."""

    def hold(self) -> int:
        """Let the workers come to a stand: the step that none but rank 0 begins, where they do not go together."""

    def close(self) -> None:
        """Let calls that wait end; nothing more is asked of it."""

    def snapshot(self) -> Held:
        """All there is to know of the group; Stale (VERSION_SKEW) when its workers make steps meanwhile."""

    def restore(self, read: Callable[[Definition], GroupState]) -> None:
        """Let the new group go on from what `read` gives for a group like it; the same again changes nothing."""

    def anew(self, step: int) -> None:
        """Go on at a step with what was not sent of gradients before it, or drop what is lost. The group is there."""


class Lost(Exception):
    """The workers of a job have lost each other: they meet again, and go on from their last checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """The state of a training that its workers hold themselves."""

    step: int
    """Steps that are done, over all epochs."""
    flat: Flat
    state: Mapping[str, Flat]
    """The optimizer's, by name."""


class Sum(Protocol):
    """A sum over all workers that is being made."""

    def wait(self) -> None:
        """Return when it is there. Raises Lost."""


class Peers(Protocol):
    """What a strategy needs of the other workers of the job. All of them make the same calls in the same order.

    Every method but `last` raises Lost when a worker has died or another meeting has begun; all must `meet` then.
    """

    def meet(self) -> None:
        """Connect with all others, once they are there; leaves the meeting before."""

    def leave(self) -> None:
        """Leave the meeting, for good."""

    def last(self) -> Snapshot | None:
        """The last checkpoint of the job, None before the first; for rank 0, which has met the others."""

    def broadcast(self, values: np.ndarray[Any, Any]) -> None:
        """Overwrite `values` of every worker by those of rank 0."""

    def add(self, values: Flat) -> Sum:
        """Begin to overwrite `values` of every worker by their sum over all, the same to the bit everywhere.

        `values` must be left alone until the sum is there.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Team:
    """What a strategy knows of its job: who this worker is, what is trained, and whom to ask."""

    rank: int
    workers: int
    tensors: Sequence[tuple[str, tuple[int, ...]]]
    """Name and shape of each tensor, in the order of the flat vector."""
    optimizer: str
    optimizer_options: Mapping[str, Any]
    extras: Extras
    """What a step does beside the optimizer's."""
    rounds: bool
    """Whether the workers make each step together."""
    samples: Callable[[int], Sequence[int]]
    """Samples of each rank in a step."""
    server: Callable[[], ParameterServer]
    """Connects to the shards of a strategy that needs them."""
    peers: Callable[[], Peers]
    """Begins to look for the other workers."""
    pause: Callable[[float], None]
    """Waits so many seconds; raises when the worker is to stop."""
    drops: bool = False
    """Whether the workers make a step without the slowest of them."""
    rolls_back: bool = False
    """Whether the job goes on from its last checkpoint when shards have lost the parameters."""
    checkpoint: Callable[[Definition], GroupState] | None = None
    """Reads what a new parameter group goes on from; None = it begins from the start."""


class Strategy(ABC):
    """One worker's end of the exchange. The first sentence of a subclass's docstring is its description.

    A step is one batch, of which every worker takes its part. In rounds the version of the parameters is the number of
    steps that were applied to them, and every worker of a job must see the same parameters at the same version, also
    one that replaces a dead worker. Without rounds each worker counts its steps by itself, and sees what is there.
    Blocking calls end with an error when the connections of the team are closed.
    """

    needs_shards: ClassVar[bool] = True
    """Whether the parameters are held by parameter shards, which run the optimizer; if not, every worker has all."""

    def __init__(self, team: Team) -> None:
        self.team = team

    @abstractmethod
    def join(self, first: Callable[[], Flat]) -> tuple[int, Flat]:
        """Begin, or go on where a dead worker stopped, or after workers have lost each other.

        Args:
            first: makes the first values, the same ones whenever and wherever it is called.

        Returns:
            The step to go on with, and the parameters that it starts from.
        """

    @abstractmethod
    def exchange(self, step: int, gradient: Flat, samples: int) -> Next:
        """Go on after `step`, to which this worker gives its mean gradient over `samples` samples.

        A worker without samples takes part all the same, with a gradient of zeros. In rounds it returns when all
        workers have given theirs; a worker may therefore wait in a step that is never finished, and is stopped then.
        Where late workers are dropped it may go on at a later step, but for rank 0, for which all others wait.
        """

    def begin(self, step: int, gradient: Flat, samples: int) -> Callable[[int, int], None] | None:
        """A step begins, whose gradient will be in `gradient`, as for `exchange`, which follows.

        Returns:
            What is to be told, in order of readiness, that the elements from one position to another are there, while
            the others are still being computed; None when the strategy has no use for parts.
        """
        return None

    def stand(self, step: int) -> bool:
        """Whether all workers stand still before `step`, which rank 0, whose this is, has not begun.

        Otherwise they will before a later one: rank 0 goes on, and asks again. True in rounds, where nobody finishes a
        step without it.
        """
        return True

    @abstractmethod
    def leave(self) -> None:
        """The job goes on with others: end calls that wait, and let go of what this one holds."""

    def abandon(self) -> None:  # noqa: B027 - not every strategy begins early
        """No `exchange` follows `begin`: the gradient could not be computed."""

    def clocks(self) -> Sequence[int] | None:
        """Steps that each worker has done; None when all have done as many as this one."""
        return None

    def samples(self) -> int | None:
        """Samples that were used so far, by all workers; None when the steps say it, for all of them count."""
        return None

    @abstractmethod
    def snapshot(self) -> Snapshot | Held:
        """All that must be kept to go on from here, between two steps of this worker."""
