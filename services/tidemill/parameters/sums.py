"""Sums over all shards in the middle of a step: each shard tells its own, and goes on when it is told those of all.

Shards do not know each other. The worker of rank 0 reads what every shard has, and writes it to all of them.
"""

import threading
from collections.abc import Callable, Sequence

import numpy as np

from tidemill import errors
from tidemill.errors import Invalid, invalid
from tidemill.parameters.segments import Partials, combine
from tidemill.tensors.blocks import Array

Turn = tuple[int, int]
"""The step, and how many sums were made in it before."""


class Sums:
    """The sums of one group's part. Safe for threads.

    Args:
        tensors: number of tensors of the group.
        widths: number of sums over each tensor, for each time that a step asks for some.
    """

    def __init__(self, tensors: int, widths: Sequence[int]) -> None:
        self._tensors = tensors
        self._widths = tuple(widths)
        self._changed = threading.Condition()
        self._own: dict[Turn, Partials] = {}
        self._told: dict[Turn, Array] = {}
        self._version = 0
        self._ended: Callable[[], errors.TidemillError] | None = None

    def total(self, turn: Turn, own: Partials) -> Array:
        """The sums over all shards, float64 [tensors, width], once they are told.

        Raises:
            TidemillError: the group has ended.
        """
        self.keep(turn, own)
        with self._changed:
            while turn not in self._told:
                if self._ended is not None:
                    raise self._ended()
                self._changed.wait()
            return self._told[turn]

    def keep(self, turn: Turn, own: Partials) -> None:
        """Let others read this shard's own sums of a turn, until the step after the next one is made."""
        with self._changed:
            self._own[turn] = own
            self._changed.notify_all()

    def made(self, version: int) -> None:
        """So many steps are made now."""
        with self._changed:
            self._version = version
            # A shard that was killed may ask once more for the last step: the others are one ahead at most.
            self._own = {turn: own for turn, own in self._own.items() if turn[0] >= version - 1}
            self._told = {turn: told for turn, told in self._told.items() if turn[0] >= version}
            self._changed.notify_all()

    def read(self, turn: Turn, alive: Callable[[], bool]) -> Partials | None:
        """This shard's own sums of a turn, once they are there; None when its step was made without any, or long ago.

        Args:
            turn: which; the one after the last of a step is there, with nothing, when the step was made.
            alive: whether anybody still waits; after a change of it, `wake` must be called.

        Raises:
            Invalid: there is no such turn.
            Cancelled: nobody waits any more.
            TidemillError: the group has ended.
        """
        self._check(turn, after=1)
        with self._changed:
            while True:
                if self._ended is not None:
                    raise self._ended()
                if turn in self._own:
                    return self._own[turn]
                if turn[0] < self._version:
                    return None
                if not alive():
                    raise errors.Cancelled("nobody waits for the sums any more")
                self._changed.wait()

    def write(self, turn: Turn, all_shards: Sequence[Partials]) -> None:
        """Take the sums of all shards for a turn of the step that is open; of another one, nothing.

        Raises:
            Invalid: there is no such turn; PARTIALS_MISMATCH, they are not those of the group's tensors, or not finite.
        """
        self._check(turn)
        width = self._widths[turn[1]]
        if any(part.sums.shape[1] != width for part in all_shards):
            raise _mismatch(f"must be {width} numbers a segment")
        totals = combine(all_shards, self._tensors)
        if not np.isfinite(totals).all() or (totals < 0).any():
            raise _mismatch("must be finite, and not negative")
        with self._changed:
            if turn[0] != self._version or turn in self._told:
                return
            own = self._own.get(turn)
            if own is not None and not _holds(all_shards, own):
                raise _mismatch("must have those of this shard among them")
            self._told[turn] = totals
            self._changed.notify_all()

    def wake(self) -> None:
        """Let all who wait look again."""
        with self._changed:
            self._changed.notify_all()

    def end(self, error: Callable[[], errors.TidemillError]) -> None:
        """Let all who wait fail with this."""
        with self._changed:
            self._ended = error
            self._own, self._told = {}, {}
            self._changed.notify_all()

    def _check(self, turn: Turn, *, after: int = 0) -> None:
        if turn[0] < 0 or not 0 <= turn[1] < len(self._widths) + after:
            raise invalid("turn", f"a step of this group asks {len(self._widths)} times for sums, from step 0 on")


def _holds(all_shards: Sequence[Partials], own: Partials) -> bool:
    return any(np.array_equal(part.keys, own.keys) and np.array_equal(part.sums, own.sums) for part in all_shards)


def _mismatch(problem: str) -> Invalid:
    return Invalid(f"sums {problem}", reason="PARTIALS_MISMATCH", violations={"partials": problem})
