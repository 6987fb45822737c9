"""What a journal is: it keeps the steps of one group's part, so that they can be made again."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tidemill.parameters.consistency.base import Consistency, Record
from tidemill.parameters.definition import Definition
from tidemill.parameters.rounds import Entry
from tidemill.parameters.saved import Saved


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a journal may keep things.

    Args:
        folder: its own.
        limit: bytes of steps after which the whole state is written anew, so that they can be forgotten.
    """

    folder: Path
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What a group begins with.

    Args:
        saved: its state.
        digest: of the first values that somebody loaded.
    """

    saved: Saved
    digest: bytes


class Journal(ABC):
    """Keeps the steps of one group's part. `record` and `roll` are called by one thread at a time, `sync` by any.

    Args:
        definition: of the group.
        place: where it may keep things; None = nowhere.

    Raises:
        FailedPrecondition: it needs a place.
    """

    late: ClassVar[bool]
    """Whether a push is acknowledged only when it was applied: what merely waits for others would be lost."""

    samples = 0
    """After `recover`: samples whose gradients were applied."""
    attempts: Sequence[int] = ()
    """After `recover`: the latest attempt of each worker that was seen."""

    @abstractmethod
    def __init__(self, definition: Definition, place: Place | None) -> None: ...

    @abstractmethod
    def begin(self, beginning: Beginning) -> None:
        """Keep what the group begins with; durable on return."""

    @abstractmethod
    def record(self, entries: Sequence[Entry], version: int, elements: int) -> AbstractContextManager[Record]:
        """Keep a step, while it is made: what is given is told the gradient of each block.

        When the block raises, the step is as if never begun.

        Args:
            entries: what it is made of.
            version: of the group before it.
            elements: of all blocks that will come.
        """

    @abstractmethod
    def sync(self) -> None:
        """Return when all steps recorded before are durable."""

    @abstractmethod
    def roll(self, now: Callable[[], Beginning]) -> None:
        """A step was made and recorded: write the state anew if it is time."""

    @abstractmethod
    def recover(self, way: Consistency) -> bytes | None:
        """Bring `way`, which has no values, where the journal ends.

        Returns:
            The digest of the first values; None when the group had none.

        Raises:
            DataLoss: what was kept is damaged.
        """

    @abstractmethod
    def delete(self) -> None:
        """Forget all."""

    @abstractmethod
    def close(self) -> None:
        """Finish what is being written; the process ends."""
