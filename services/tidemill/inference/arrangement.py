"""How the rows of calls lie in a batch, where they do not simply follow each other."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from tidemill.inference.calls import Answer, Array, Call


class Arrangement(Protocol):
    """Lays out one batch, or any part of it that runs for itself."""

    def merge(self, calls: Sequence[Call]) -> Mapping[str, Array]:
        """The inputs of these calls as those of one run."""

    def split(self, calls: Sequence[Call], found: Mapping[str, Array]) -> list[Answer]:
        """The answer to each of these calls, out of the outputs of the run.

        Raises:
            Internal: the model gave another number of rows than it got.
        """
