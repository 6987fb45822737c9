"""Synchronous training without a parameter server: the workers sum up their gradients among themselves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tidemill.training.optimizers import Optimizer
from tidemill.training.rule import Rule
from tidemill.training.strategies.base import Flat, Next, Snapshot, Strategy, Sum, Team

FIRST_BUCKET = (1 << 20) // 4
BUCKET = 25 * (1 << 20) // 4
"""Elements of the bucket that leaves first, which is small so that it leaves early, and of the others."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A run of elements of the flat vector."""

    start: int
    stop: int


class AllReduce(Strategy):
    """Synchronous steps by all-reduce over torch.distributed; every worker runs the optimizer (Li et al. 2020).

    Gradients leave in buckets from the last element to the first, which is about the order in which backward makes
    them, and are summed up while it makes the others. A sum is the same to the bit on all workers, so their parameters
    and the state of their optimizers stay the same without being compared.
    """

    needs_shards = False

    def __init__(self, team: Team) -> None:
        super().__init__(team)
        sizes = [int(np.prod(shape)) for _, shape in team.tensors]
        size = sum(sizes)
        self._peers = team.peers()
        self._optimizer = Optimizer(team.optimizer, team.optimizer_options, size)
        self._rule = Rule(self._optimizer, sizes, team.extras)
        self._flat: Flat = np.zeros(size, np.float32)
        self._mean: Flat = np.zeros(size if team.workers > 1 else 0, np.float32)
        self._buckets = buckets(sizes)
        self._round: Round | None = None
        self._step = 0

    def join(self, first: Callable[[], Flat]) -> tuple[int, Flat]:
        """Meet the others; rank 0 tells them from where to go on: its last checkpoint, or the start."""
        self._round = None
        # Whoever is left behind in the meeting before may still write to these.
        self._flat, self._mean = np.zeros_like(self._flat), np.zeros_like(self._mean)
        self._peers.meet()
        last = self._peers.last() if self.team.rank == 0 else None
        step = np.array([last.step if last else 0], np.int64)
        self._peers.broadcast(step)
        self._step = int(step[0])
        self._optimizer.reset()
        if self._step == 0:
            self._flat[:] = first()
        else:
            self._restore(last)
        return self._step, self._flat

    def begin(self, step: int, gradient: Flat, samples: int) -> Callable[[int, int], None] | None:
        """Prepare the sums of a step."""
        if self.team.workers == 1:
            return None
        weight = np.float32(samples / sum(self.team.samples(step)))
        self._round = Round(self._buckets, gradient, weight, self._mean, self._peers.add)
        return self._round.ready

    def exchange(self, step: int, gradient: Flat, samples: int) -> Next:
        """Wait for the sums, and make a step with them."""
        if self._round is not None:
            self._round.finish()
            gradient = self._mean
        self._rule.step(self._flat, gradient, step)
        self._step = step + 1
        return Next(step=self._step, flat=self._flat)

    def leave(self) -> None:
        """Leave the meeting."""
        self._peers.leave()

    def snapshot(self) -> Snapshot:
        """The parameters and the optimizer's state; both are the same on all workers."""
        return Snapshot(step=self._step, flat=self._flat, state=self._optimizer.state())

    def _restore(self, last: Snapshot | None) -> None:
        if last is not None:
            self._optimizer.restore(last.state)
            self._flat[:] = last.flat
        self._peers.broadcast(self._flat)
        state = self._optimizer.state()
        for name in sorted(state):
            self._peers.broadcast(state[name])
        self._optimizer.restore(state)


class Round:
    """The sums of one step.

    Args:
        runs: the buckets, in the order in which they leave: the same on all workers.
        gradient: this worker's.
        weight: of this worker's gradient: its part of the samples.
        mean: takes the weighted sums.
        add: begins a sum.
    """

    def __init__(
        self, runs: Sequence[Bucket], gradient: Flat, weight: np.float32, mean: Flat, add: Callable[[Flat], Sum]
    ) -> None:
        self._runs = runs
        self._mean = mean
        self._gradient = gradient
        self._weight = weight
        self._add = add
        self._missing = [run.stop - run.start for run in runs]
        self._sums: list[Sum] = []

    def ready(self, start: int, stop: int) -> None:
        """These elements of the gradient are there; a bucket leaves when it and all before it are complete."""
        for index, run in enumerate(self._runs):
            self._missing[index] -= max(0, min(stop, run.stop) - max(start, run.start))
        while len(self._sums) < len(self._runs) and not self._missing[len(self._sums)]:
            self._leave()

    def finish(self) -> None:
        """Let the rest leave, and wait for all sums. Raises Lost."""
        while len(self._sums) < len(self._runs):
            self._leave()
        for begun in self._sums:
            begun.wait()

    def _leave(self) -> None:
        run = self._runs[len(self._sums)]
        part = self._mean[run.start : run.stop]
        np.multiply(self._gradient[run.start : run.stop], self._weight, out=part)
        self._sums.append(self._add(part))


def buckets(sizes: Sequence[int]) -> list[Bucket]:
    """The buckets of tensors of `sizes` elements, last tensors first; no tensor is cut."""
    found: list[Bucket] = []
    stop = start = sum(sizes)
    for size in reversed(sizes):
        start -= size
        if stop - start >= (BUCKET if found else FIRST_BUCKET) or start == 0:
            if stop > start:
                found.append(Bucket(start, stop))
            stop = start
    return found
