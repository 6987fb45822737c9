"""Where the workers of one job meet, when they talk to each other."""

from collections.abc import Mapping


class Meeting:
    """Numbered meetings; another one begins whenever a worker has lost the others, or another process has its rank.

    Rank 0 says where it awaits the others; nobody is sent to a place of a meeting before. All is in memory: the workers
    know which meeting they are in and say so with every sign of life, so what was forgotten is soon known again.
    """

    def __init__(self) -> None:
        self.generation = 1
        """Number of the latest meeting."""
        self._attempts: dict[int, int] = {}
        self._address = ""

    @property
    def present(self) -> Mapping[int, int]:
        """Attempt of each rank that was sent to the latest meeting, or is in it."""
        return self._attempts

    @property
    def is_open(self) -> bool:
        """Whether rank 0 has said where the latest meeting is."""
        return bool(self._address)

    def arrive(self, rank: int, attempt: int, *, lost: int, address: str) -> tuple[int, str]:
        """A worker wants to meet the others.

        Args:
            rank, attempt: the worker.
            lost: meeting that it has left; 0 = none.
            address: where rank 0 awaits the others.

        Returns:
            The number of the meeting and where it is, "" = not known yet.
        """
        if lost >= self.generation or self._attempts.get(rank, attempt) != attempt:
            self._next(max(lost, self.generation) + 1)
        self._attempts[rank] = attempt
        if rank == 0:
            self._address = address
        return self.generation, self._address

    def seen(self, rank: int, attempt: int, generation: int) -> None:
        """A worker says in which meeting it is."""
        if generation > self.generation:
            self._next(generation)
        if generation == self.generation:
            self._attempts.setdefault(rank, attempt)

    def anew(self) -> None:
        """All are to meet again: there are others."""
        self._next(self.generation + 1)

    def _next(self, generation: int) -> None:
        self.generation = generation
        self._attempts.clear()
        self._address = ""
