"""What one step makes of the mean gradient, on one shard of a group."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np

from tidemill.errors import FailedPrecondition, invalid
from tidemill.parameters.lanes import ALONE, Lanes
from tidemill.parameters.optimizers.base import Layerwise, Optimizer
from tidemill.parameters.rows import Rows
from tidemill.parameters.segments import Partials, Segments
from tidemill.schedules.base import Schedule
from tidemill.tensors.blocks import Array

Exchange = Generator[Partials, Array, None]
"""A step at work: yields its shard's partial sums, is sent the totals [tensors, width] that `segments.combine` made of
those of all shards, and is done when it ends."""
Guard = Callable[[int], AbstractContextManager[object]]
"""What is held while the block at a position changes."""


class Rule:
    """How the parameters of one shard change, step by step, and what is kept for that. Not safe for threads by itself.

    A step: clip the mean gradient, if asked; let the optimizer make its step with the learning rate that the schedule
    gives for it; shrink the parameters towards 0 for an L1 penalty, if asked. Clipping and layer-wise optimizers need
    sums over all shards: so a step is an exchange, during which every shard waits for the others.

    Args:
        optimizer: over the blocks of the shard.
        schedule: of its learning rate.
        segments: of the shard's blocks.
        clip_norm: largest norm of the whole group's gradient; what is longer is made so long; 0 = any.
        l1: weight of the sum of magnitudes in the loss; 0 = none.
    """

    def __init__(
        self, optimizer: Optimizer, schedule: Schedule, segments: Segments, *, clip_norm: float = 0.0, l1: float = 0.0
    ) -> None:
        self._optimizer = optimizer
        self._schedule = schedule
        self._segments = segments
        self._clip_norm = clip_norm
        self._l1 = l1
        self._steps = 0
        self._unfinished = False

    @property
    def steps(self) -> int:
        """Number of steps made."""
        return self._steps

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        return float(self._optimizer.config.learning_rate) * self._schedule.factor(self._steps)

    @property
    def exchanges(self) -> int:
        """How often a step yields partial sums; the same on every shard, also on one without blocks."""
        return len(self.widths)

    @property
    def widths(self) -> tuple[int, ...]:
        """The number of sums over each tensor, for each time that a step yields some."""
        return (1,) * (self._clip_norm > 0) + (2,) * isinstance(self._optimizer, Layerwise)

    def step(
        self,
        parameters: Sequence[Array],
        gradients: Sequence[Array | Rows],
        guard: Guard | None = None,
        lanes: Lanes = ALONE,
    ) -> Exchange:
        """Make one step in place.

        One that is given up while it waits for the sums of clipping has changed nothing; one that is given up while a
        layer-wise optimizer waits leaves the rule unusable until `restore`.

        Args:
            parameters: the values of each block, writable float32.
            gradients: the mean gradient of each block, or of the touched rows of one that is whole rows of one table;
                its other rows and their state stay as they are. Undefined afterwards.
            guard: entered for each block, by its position, for as long as its values change; by default none, and all
                blocks change together, which is a little faster.
            lanes: do blocks at the same time, when there is a guard and the optimizer is not layer-wise.

        Raises:
            FailedPrecondition: with reason STEP_UNFINISHED, an earlier step was given up.
            Invalid: NO_SPARSE, the optimizer takes no rows; or rows that are not rows of their block.
        """
        self._check()
        self._optimizer.check(parameters, gradients)
        rate = self.learning_rate
        if self._clip_norm:
            _clip(gradients, (yield self._segments.squares(gradients)), self._clip_norm)
        self._unfinished = True
        if isinstance(self._optimizer, Layerwise):
            directions = [gradient for gradient in gradients if not isinstance(gradient, Rows)]
            self._optimizer.directions(parameters, directions)
            totals = yield self._segments.squares(parameters, directions)
            factors = rate * self._ratios(self._optimizer, totals)
            for at in range(len(parameters)):
                with guard(at) if guard else nullcontext():
                    self._walk(at, parameters[at], directions[at], factors)
                    self._shrink(parameters[at], gradients[at], rate)
        elif guard:
            lanes.each(len(parameters), partial(self._step_block, parameters, gradients, guard, rate))
        else:
            self._optimizer.step(parameters, gradients, rate)
            for values, gradient in zip(parameters, gradients, strict=True):
                self._shrink(values, gradient, rate)
        self._steps += 1
        self._unfinished = False

    def _step_block(
        self, parameters: Sequence[Array], gradients: Sequence[Array | Rows], guard: Guard, rate: float, at: int
    ) -> None:
        gradient = gradients[at]
        if isinstance(gradient, Rows) and not len(gradient.indices):
            return
        with guard(at):
            self._optimizer.step_block(at, parameters[at], gradient, rate)
            self._shrink(parameters[at], gradient, rate)

    def state(self) -> dict[str, list[Array | None]]:
        """A copy of the optimizer's state: name -> one array a block, of one element where that is one for all.

        Raises:
            FailedPrecondition: with reason STEP_UNFINISHED, a step is at work or was given up.
        """
        self._check()
        return self._optimizer.state()

    def restore(self, state: Mapping[str, Sequence[Array | None]], steps: int) -> None:
        """Go on from what `state` and `steps` were, for these blocks, on whichever shards they were then.

        Raises:
            Invalid: STATE_MISMATCH, it is not the state of such an optimizer over such blocks; nothing has changed.
        """
        if steps < 0:
            raise invalid("steps", f"must not be negative, not {steps}", reason="STATE_MISMATCH")
        self._optimizer.restore(state)
        self._steps = steps
        self._unfinished = False

    def _check(self) -> None:
        if self._unfinished:
            raise FailedPrecondition(
                "a step is not finished: its state belongs to no version", reason="STEP_UNFINISHED"
            )

    def _ratios(self, optimizer: Layerwise, totals: Array) -> Array:
        return np.array([optimizer.scale(float(values), float(step)) for values, step in np.sqrt(totals)])

    def _walk(self, at: int, values: Array, direction: Array, factors: Array) -> None:
        """Go in the direction, for each tensor of the block by its own factor."""
        with np.errstate(over="ignore", invalid="ignore"):
            for segment in self._segments.inside(at):
                step = direction[segment.where]
                step *= np.float32(factors[segment.tensor])
                values[segment.where] -= step

    def _shrink(self, values: Array, gradient: Array | Rows, learning_rate: float) -> None:
        """Soft threshold, the proximal step of the L1 norm (Parikh and Boyd 2014); of touched rows alone."""
        if not self._l1:
            return
        most = np.float32(learning_rate * self._l1)
        if isinstance(gradient, Rows):
            table = values.reshape(-1, gradient.width)
            rows = table[gradient.indices]
            table[gradient.indices] = rows - np.clip(rows, -most, most)
        else:
            values -= np.clip(values, -most, most)


def run(step: Exchange, exchange: Callable[[Partials], Array]) -> None:
    """Make a step whose totals `exchange` finds from the partial sums of this shard."""
    try:
        partials = next(step)
        while True:
            partials = step.send(exchange(partials))
    except StopIteration:
        return


def _clip(gradients: Sequence[Array | Rows], totals: Array, limit: float) -> None:
    """Scale the gradients to the norm `limit` where they are longer, as `torch.nn.utils.clip_grad_norm_`."""
    norm = 0.0
    for total in totals[:, 0]:
        norm += float(total)
    factor = limit / (norm**0.5 + 1e-6)
    if factor >= 1:
        return
    with np.errstate(over="ignore", invalid="ignore"):
        for gradient in gradients:
            values = gradient.gradients if isinstance(gradient, Rows) else gradient
            values *= np.float32(factor)
