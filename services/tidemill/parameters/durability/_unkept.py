"""What keeps nothing on this shard."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tidemill.parameters.consistency.base import Consistency, Record, nothing_of
from tidemill.parameters.definition import Definition
from tidemill.parameters.durability.base import Beginning, Journal, Place
from tidemill.parameters.rounds import Entry


class Unkept(Journal):
    """Keeps nothing."""

    def __init__(self, definition: Definition, place: Place | None) -> None:
        """Nothing is needed."""

    def begin(self, beginning: Beginning) -> None:
        """Keep nothing."""

    @contextmanager
    def record(self, entries: Sequence[Entry], version: int, elements: int) -> Iterator[Record]:
        """Keep nothing."""
        yield nothing_of

    def sync(self) -> None:
        """There is nothing to wait for."""

    def roll(self, now: Callable[[], Beginning]) -> None:
        """Write nothing."""

    def recover(self, way: Consistency) -> bytes | None:
        """There is nothing."""
        return None

    def delete(self) -> None:
        """There is nothing."""

    def close(self) -> None:
        """There is nothing."""
