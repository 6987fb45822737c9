"""Who takes which samples when: pure functions of seed, epoch, step and rank, the same in every process.

Nothing here depends on which process runs a rank or what it did before, so a worker that replaces a dead one repeats
its steps exactly.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidemill.training.samples import Array, bad


def derive(seed: int, *names: str | int) -> int:
    """A number in [0, 2^63) for each use of `seed`: the SHA-256 of the seed and the names of the use."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def shuffled(count: int, seed: int, *names: str | int) -> Array:
    """The numbers below `count` in an order that depends on the seed and the names of the use alone; int64 [count]."""
    return np.random.Generator(np.random.PCG64(derive(seed, *names))).permutation(count)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Positions of the samples of each split, rising; int64."""

    train: Array
    validation: Array
    test: Array


def split(y: Array, validation: float, test: float, seed: int) -> Parts:
    """A stratified split of samples of the classes `y` [N]: every class gives its part, rounded, to each split.

    A class of three or more samples gives at least one to each split that is asked for; a smaller one only trains.

    Args:
        y: class of each sample.
        validation: part for validation, in (0, 0.5].
        test: part for testing, in (0, 0.5]; 0 = there are test samples already.
        seed: makes the split.

    Raises:
        Invalid: no class is large enough to be split.
    """
    chosen: tuple[list[Array], list[Array], list[Array]] = ([], [], [])
    for label in np.unique(y).tolist():
        members = np.flatnonzero(y == label)
        members = members[shuffled(len(members), seed, "split", label)]
        held = _held_out(len(members), validation, test)
        chosen[1].append(members[: held[0]])
        chosen[2].append(members[held[0] : sum(held)])
        chosen[0].append(members[sum(held) :])
    train, validating, testing = (np.sort(np.concatenate(part)) for part in chosen)
    if not len(validating) or (test and not len(testing)):
        raise bad("no class has three samples, so none can be held out for validation and testing")
    return Parts(train=train, validation=validating, test=testing)


def _held_out(count: int, validation: float, test: float) -> tuple[int, int]:
    if count < 3:
        return 0, 0
    validating = max(1, round(count * validation))
    testing = max(1, round(count * test)) if test else 0
    while validating + testing >= count:  # one must be left to train
        validating, testing = (validating - 1, testing) if validating >= testing else (validating, testing - 1)
    return validating, testing


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Which samples each rank takes in each step: every sample exactly once an epoch.

    Steps are counted over all epochs, from 0. Step `s` uses a slice of its epoch's order of the samples; rank `r` of
    `w` takes the part of that slice between its r/w and (r+1)/w, so parts differ by one sample at most, and may be
    empty in the last step of an epoch.
    """

    samples: int
    batch_size: int
    workers: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every sample is used once."""
        return math.ceil(self.samples / self.batch_size)

    def epoch(self, step: int) -> int:
        """The epoch, from 1, that a step belongs to."""
        return step // self.steps_per_epoch + 1

    def order(self, epoch: int) -> Array:
        """All samples in the order in which an epoch uses them."""
        return shuffled(self.samples, self.seed, "order", epoch)

    def counts(self, step: int) -> list[int]:
        """Samples of each rank in `step`."""
        begin = step % self.steps_per_epoch * self.batch_size
        size = min(self.batch_size, self.samples - begin)
        return [(rank + 1) * size // self.workers - rank * size // self.workers for rank in range(self.workers)]

    def used(self, steps: Sequence[int]) -> int:
        """Samples that all ranks have taken together, when each has done so many steps."""
        whole, last = self.counts(0), self.counts(self.steps_per_epoch - 1)
        total = 0
        for rank, done in enumerate(steps):
            epochs, rest = divmod(done, self.steps_per_epoch)
            total += epochs * ((self.steps_per_epoch - 1) * whole[rank] + last[rank]) + rest * whole[rank]
        return total

    def part(self, order: Array, step: int, rank: int) -> Array:
        """The samples of `rank` in `step`, of its epoch's `order`."""
        start = step % self.steps_per_epoch * self.batch_size
        batch = order[start : start + self.batch_size]
        return batch[rank * len(batch) // self.workers : (rank + 1) * len(batch) // self.workers]
