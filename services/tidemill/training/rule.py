"""What one step makes of the mean gradient where workers hold the parameters: as parameter shards do, to the bit."""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

from tidemill import plugins, schedules
from tidemill.config import from_mapping
from tidemill.schedules.base import Schedule
from tidemill.tensors.blocks import BLOCK
from tidemill.training.optimizers import Optimizer
from tidemill.training.strategies.base import Extras, Flat


class Rule:
    """Clips the gradient, lets the optimizer step with the schedule's learning rate, shrinks for an L1 penalty.

    Args:
        optimizer: over the whole flat vector.
        sizes: elements of each tensor, in the order of the flat vector.
        extras: what there is beside it.

    Raises:
        Invalid: there is no such schedule, or a parameter of it is wrong.
    """

    def __init__(self, optimizer: Optimizer, sizes: Sequence[int], extras: Extras) -> None:
        kind = plugins.load(schedules, extras.schedule, Schedule)
        self._schedule = kind(from_mapping(kind.Config, extras.schedule_options, "schedule.parameters"))
        self._optimizer = optimizer
        self._sizes = sizes
        self._extras = extras

    def step(self, parameters: Flat, gradient: Flat, step: int) -> None:
        """Make the step of this number, from 0, in place; `gradient` is undefined afterwards."""
        if self._extras.clip_norm:
            self._clip(gradient)
        rate = self._optimizer.learning_rate * self._schedule.factor(step)
        self._optimizer.step(parameters, gradient, rate)
        if self._extras.l1:
            most = np.float32(rate * self._extras.l1)  # soft threshold (Parikh and Boyd 2014)
            parameters -= np.clip(parameters, -most, most)

    def _clip(self, gradient: Flat) -> None:
        """Scale the gradient to the largest norm when it is longer, as `torch.nn.utils.clip_grad_norm_`."""
        norm = 0.0
        for total in self._squares(gradient):
            norm += total
        factor = self._extras.clip_norm / (norm**0.5 + 1e-6)
        if factor < 1:
            with np.errstate(over="ignore", invalid="ignore"):
                gradient *= np.float32(factor)

    def _squares(self, gradient: Flat) -> Iterator[float]:
        """The sum of squares of each tensor, block by block: in the order in which parameter shards add."""
        for start, size in zip(accumulate(self._sizes, initial=0), self._sizes, strict=False):
            total, at, end = 0.0, start, start + size
            while at < end:
                stop = min(end, (at // BLOCK + 1) * BLOCK)
                total += float(np.square(gradient[at:stop], dtype=np.float64).sum())
                at = stop
            yield total
