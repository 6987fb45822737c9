"""What a group of parameters is made of, checked before anything is allocated."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

from tidemill import names
from tidemill.errors import invalid
from tidemill.parameters.catalogue import CONSTANT, Choice, RuleChoice
from tidemill.parameters.stragglers import WAIT, Stragglers
from tidemill.tensors import shapes
from tidemill.tensors.blocks import BLOCK, Block

MAX_WORKERS = 64
MAX_SHARDS = 64
MAX_TENSOR_NAME = 256
MAX_STALENESS = 2**20
MODES = ("bsp", "ssp", "asp")
DURABILITY = ("none", "wal", "replicated")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the group, float32."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How pushes become parameters, and how far apart workers may be.

    Args:
        mode: one of `MODES`.
        staleness: for `ssp`: most steps between the fastest and the slowest worker.
        arrival_order: for `bsp`: whether gradients are added up in order of arrival.

    Raises:
        Invalid: when these do not go together.
    """

    mode: str = "bsp"
    staleness: int = 0
    arrival_order: bool = False

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise invalid("group.consistency.mode", f"must be one of {', '.join(MODES)}, not {self.mode[:40]!r}")
        if not 0 <= self.staleness <= MAX_STALENESS:
            raise invalid("group.consistency.staleness", f"must be in [0, 2^20], not {self.staleness}")
        if self.staleness and self.mode != "ssp":
            raise invalid("group.consistency.staleness", f"is for SSP, not {self.mode.upper()}")
        if self.arrival_order and not self.rounds:
            raise invalid("group.consistency.arrival_order", "is for BSP: otherwise pushes are applied as they come")

    @property
    def rounds(self) -> bool:
        """Whether the gradients of a step make one step of the optimizer together."""
        return self.mode == "bsp" or (self.mode == "ssp" and self.staleness == 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Durability:
    """What outlives the end of a shard.

    Args:
        mode: one of `DURABILITY`.
        fsync: for `wal`: whether the disk must have a push before it is acknowledged.

    Raises:
        Invalid: when these do not go together.
    """

    mode: str = "none"
    fsync: bool = False

    def __post_init__(self) -> None:
        if self.mode not in DURABILITY:
            raise invalid("group.durability.mode", f"must be one of {', '.join(DURABILITY)}, not {self.mode[:40]!r}")
        if self.fsync and self.mode != "wal":
            raise invalid("group.durability.fsync", "is for a log")


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One shard's part of a group, as its creator asked for it.

    Raises:
        Invalid: when made of parts that do not fit together.
    """

    name: str
    tensors: tuple[Tensor, ...]
    blocks: tuple[Block, ...]
    optimizer: Choice
    workers: int
    shard: int
    shards: int
    consistency: Way = Way()
    clip_norm: float = 0.0
    l1: float = 0.0
    schedule: Choice = CONSTANT
    durability: Durability = Durability()
    sparse: tuple[int, ...] = ()
    """Positions of the tensors whose gradients come as rows."""
    stragglers: Stragglers = WAIT

    def __post_init__(self) -> None:
        names.split(self.name, "groups", field="group.name")
        if not 1 <= self.workers <= MAX_WORKERS:
            raise invalid("group.workers", f"must be in [1, {MAX_WORKERS}], not {self.workers}")
        if not 1 <= self.shards <= MAX_SHARDS:
            raise invalid("group.shards", f"must be in [1, {MAX_SHARDS}], not {self.shards}")
        if not 0 <= self.shard < self.shards:
            raise invalid("group.shard", f"must be in [0, {self.shards}), not {self.shard}")
        total = _total(self.tensors)
        _check_blocks(self.blocks, total)
        if self.shards == 1:
            _check_whole(self.blocks, total)
        self._check_sparse()
        self.stragglers.check(
            workers=self.workers,
            rounds=self.consistency.rounds,
            arrival_order=self.consistency.arrival_order,
            copies=self.durability.mode == "replicated",
            sparse=bool(self.sparse),
        )

    @property
    def widths(self) -> dict[int, int]:
        """Elements of a row, by index, of the blocks of sparse tensors."""
        starts = list(accumulate((prod(tensor.shape) for tensor in self.tensors), initial=0))
        found = {}
        for position in self.sparse:
            for block in self.blocks:
                if starts[position] <= block.offset < starts[position + 1]:
                    found[block.index] = self.tensors[position].shape[1]
        return found

    def _check_sparse(self) -> None:
        if not self.sparse:
            return
        field = "group.sparse"
        known = range(len(self.tensors))
        if list(self.sparse) != sorted({*self.sparse}) or any(at not in known for at in self.sparse):
            raise invalid(field, "must be positions of tensors, ascending, each once")
        if any(len(shape := self.tensors[at].shape) != 2 or not 0 < shape[1] <= BLOCK for at in self.sparse):
            raise invalid(field, f"must be tensors of two dimensions, with rows of at most {BLOCK} elements")
        if self.durability.mode == "wal":
            raise invalid(field, "cannot have a log")
        if self.consistency.arrival_order:
            raise invalid(field, "cannot be added up in order of arrival")
        starts = list(accumulate((prod(tensor.shape) for tensor in self.tensors), initial=0))
        for at in self.sparse:
            first, end, width = starts[at], starts[at + 1], self.tensors[at].shape[1]
            for block in self.blocks:
                last = block.offset + block.elements
                if block.offset < end and last > first:
                    whole = first <= block.offset and last <= end
                    if not whole or (block.offset - first) % width or block.elements % width:
                        raise invalid("group.blocks", f"block {block.index} must hold whole rows of tensor {at} alone")

    @property
    def rule(self) -> RuleChoice:
        """What a step is made of."""
        return RuleChoice(optimizer=self.optimizer, clip_norm=self.clip_norm, l1=self.l1, schedule=self.schedule)

    @property
    def elements(self) -> int:
        """Number of elements on this shard."""
        return sum(block.elements for block in self.blocks)


def _total(tensors: Sequence[Tensor]) -> int:
    seen = set()
    total = 0
    for position, tensor in enumerate(tensors):
        field = f"group.tensors[{position}]"
        if not 1 <= len(tensor.name) <= MAX_TENSOR_NAME:
            raise invalid(f"{field}.name", f"must have 1 to {MAX_TENSOR_NAME} characters")
        if tensor.name in seen:
            raise invalid(f"{field}.name", f"{tensor.name[:40]!r} is there twice")
        seen.add(tensor.name)
        total += shapes.elements(tensor.shape, f"{field}.shape")
    if total == 0:
        raise invalid("group.tensors", "must have at least one element together")
    return total


def _check_blocks(blocks: Sequence[Block], total: int) -> None:
    end, last = 0, -1
    for position, block in enumerate(blocks):
        field = f"group.blocks[{position}]"
        if not 1 <= block.elements <= BLOCK:
            raise invalid(f"{field}.elements", f"must be in [1, {BLOCK}], not {block.elements}")
        if block.index <= last:
            raise invalid(f"{field}.index", "blocks must be in order of index, each once, from 0")
        if block.offset < end:
            raise invalid(f"{field}.offset", "blocks must not overlap, in order of index")
        if block.offset + block.elements > total:
            raise invalid(f"{field}.offset", f"the block ends after the {total} elements of the group")
        end, last = block.offset + block.elements, block.index


def _check_whole(blocks: Sequence[Block], total: int) -> None:
    """The only shard must have every element; what others have, one of several cannot know."""
    end = 0
    for position, block in enumerate(blocks):
        if block.offset != end:
            raise invalid(
                f"group.blocks[{position}].offset",
                f"must be {end}: the only shard has all elements, not {block.offset}",
            )
        end += block.elements
    if end != total:
        raise invalid("group.blocks", f"must cover all {total} elements of the group on its only shard, not {end}")
