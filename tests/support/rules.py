"""Rules on several shards of one group, in one process and in lockstep."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from tidemill.parameters.catalogue import Choice, RuleChoice, check_rule, make_rule
from tidemill.parameters.rows import Rows
from tidemill.parameters.segments import combine
from tidemill.tensors.blocks import Array, Block, assign


def blocks_of(sizes: Sequence[int]) -> list[Block]:
    """Blocks of these sizes, one after the other."""
    offsets = np.cumsum([0, *sizes])
    return [Block(index, int(offset), size) for index, (offset, size) in enumerate(zip(offsets, sizes, strict=False))]


def rule_choice(name: str, *, clip_norm: float = 0.0, l1: float = 0.0, **parameters: object) -> RuleChoice:
    """An optimizer with these hyperparameters at a constant learning rate, checked."""
    return check_rule(RuleChoice(optimizer=Choice(name, parameters), clip_norm=clip_norm, l1=l1))


class Shards:
    """A group whose flat vector is spread over shards, each with a rule of its own.

    Args:
        choice: how it changes.
        tensors: number of elements of each.
        blocks: of the whole flat vector.
        shards: how many share them.
        first: the values to begin with.
    """

    def __init__(
        self, choice: RuleChoice, tensors: Sequence[int], blocks: Sequence[Block], shards: int, first: Array
    ) -> None:
        self.values = first.copy()
        self.blocks = [part for part in assign(blocks, shards) if part]
        self.rules = [make_rule(choice, tensors, part) for part in self.blocks]
        self.exchanges = 0
        self._tensors = len(tensors)

    def step(self, gradient: Array | dict[int, Array | Rows]) -> None:
        """One step on all shards; each block its gradient or touched rows when they are not one vector."""
        working = [
            rule.step(
                [self.values[block.slice] for block in part],
                [gradient[block.index] if isinstance(gradient, dict) else gradient[block.slice] for block in part],
            )
            for rule, part in zip(self.rules, self.blocks, strict=True)
        ]
        totals: Array | None = None
        while True:
            partials = []
            for step in working:
                with suppress(StopIteration):
                    # A generator takes nothing before its first yield.
                    partials.append(next(step) if totals is None else step.send(totals))
            if not partials:
                return
            assert len(partials) == len(working), "every shard needs the same sums"
            self.exchanges += 1
            # The order in which they come must not matter.
            totals = combine(reversed(partials), self._tensors)

    def state(self) -> dict[str, dict[int, Array | None]]:
        """The optimizer's state by name and index of the block."""
        found: dict[str, dict[int, Array | None]] = {}
        for rule, part in zip(self.rules, self.blocks, strict=True):
            for name, arrays in rule.state().items():
                found.setdefault(name, {}).update(
                    {block.index: array for block, array in zip(part, arrays, strict=True)}
                )
        return found

    def restore(self, state: dict[str, dict[int, Array | None]], steps: int) -> None:
        """Hand every shard what its blocks had."""
        for rule, part in zip(self.rules, self.blocks, strict=True):
            rule.restore({name: [arrays[block.index] for block in part] for name, arrays in state.items()}, steps)
