"""What a job is to train, as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A plug-in by file name, with its hyperparameters."""

    name: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Where the samples come from: `builtin` or `artifact` is set, and how to read the artifact."""

    builtin: str = ""
    artifact: str = ""
    format: str = ""
    label_column: str = ""
    text_column: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Parts of the samples that are held out; 0 = the default."""

    validation: float = 0.0
    test: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStopping:
    """When to stop before the last epoch; patience 0 = never."""

    patience: int = 0
    min_delta: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Consistency:
    """How far apart workers may be: `mode` is one of `bsp`, `ssp` and `asp`."""

    mode: str = ""
    staleness: int = 0
    """For `ssp`: most steps between the fastest and the slowest worker."""
    arrival_order: bool = False
    """For `bsp`: whether gradients are added up in order of arrival."""

    @property
    def rounds(self) -> bool:
        """Whether the workers make each step together."""
        return self.mode in ("", "bsp") or (self.mode == "ssp" and self.staleness == 0)

    @property
    def waits(self) -> bool:
        """Whether workers that are ahead wait for rank 0: then all are held when it is."""
        return self.mode != "asp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Durability:
    """What outlives the end of a parameter shard: `mode` is one of `none`, `wal`, `replicated` and `checkpoint`."""

    mode: str = ""
    fsync: bool = False
    """For `wal`: whether an acknowledgement waits for the disk."""
    interval_steps: int = 0
    """For `checkpoint`: steps between two checkpoints."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stragglers:
    """What becomes of workers that are late in rounds: `policy` is one of `wait`, `drop` and `fail`."""

    policy: str = ""
    most: int = 0
    """For `drop`: most workers without which a step is made."""
    after_seconds: float = 0.0
    """Since the first gradient of a step: for `drop`, how long all are waited for; for `fail`, when it is too late."""

    @property
    def drops(self) -> bool:
        """Whether steps are made without the slowest."""
        return self.policy == "drop"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What to train; 0 and empty mean the default until `checks.complete` has filled them in."""

    model: Component = field(default_factory=Component)
    dataset: Dataset = field(default_factory=Dataset)
    split: Split = field(default_factory=Split)
    optimizer: Component = field(default_factory=Component)
    strategy: str = ""
    workers: int = 0
    shards: int = 0
    epochs: int = 0
    batch_size: int = 0
    seed: int = 0
    early_stopping: EarlyStopping = field(default_factory=EarlyStopping)
    register_as: str = ""
    alias: str = ""
    max_restarts: int | None = None
    """None = the default."""
    code_revision: str = ""
    checkpoint_steps: int = 0
    """Steps between two checkpoints of workers that hold the state themselves; 0 = at the ends of epochs only."""
    consistency: Consistency = field(default_factory=Consistency)
    schedule: Component = field(default_factory=Component)
    """Of the learning rate."""
    clip_norm: float = 0.0
    """Largest norm of a step's gradient; 0 = any."""
    l1: float = 0.0
    """Weight of the parameters' magnitudes in the loss."""
    codec: Component = field(default_factory=Component)
    """How gradients travel to parameter shards."""
    durability: Durability = field(default_factory=Durability)
    stragglers: Stragglers = field(default_factory=Stragglers)
