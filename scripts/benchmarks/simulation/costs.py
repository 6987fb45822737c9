"""What it costs to move and to apply bytes, and on what machines."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

Compute: TypeAlias = Callable[[int, int], float]
"""Seconds that a worker computes in a step, by worker and step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One direction between a worker and a shard."""

    fixed: float
    """Seconds of a call, however little it carries, when nothing else runs."""
    worker_call: float = 0.0
    """CPU seconds of that in the worker."""
    shard_call: float = 0.0
    """CPU seconds of that in the shard."""
    alone: float
    """Seconds a byte of one stream when nothing else runs."""
    worker: float
    """CPU seconds a byte in the worker."""
    shard: float
    """CPU seconds a byte in the shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Of a parameter server."""

    push: Way
    pull: Way
    mean: float
    """CPU seconds a byte for adding up one worker's gradients."""
    step: float
    """CPU seconds a byte for the optimizer and a new version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RingCosts:
    """Of an all-reduce."""

    fixed: float
    """Seconds of one of the 2 (W - 1) exchanges with the neighbours, however little it carries."""
    alone: float
    """Seconds a byte of such an exchange, with adding up."""
    worker: float
    """CPU seconds a byte, in each worker."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where processes run."""

    host_cores: float | None = None
    """Cores of the one host of all processes; None = every process has a machine of its own."""
    friction: float = 1.0
    """What processes that share too few cores of a host take longer than their number says: caches, switches, locks."""
    process: float = math.inf
    """Cores with which one process moves data at most, however many streams it has."""
    network: float = math.inf
    """Bytes a second of each machine's network card, each way."""
    latency: float = 0.0
    """Seconds that the network adds to every call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is simulated."""

    workers: int
    shards: int = 1
    bytes: float
    """Of the parameters, and of a worker's gradients."""
    steps: int
    """Of each worker."""
    compute: Compute
    mode: str = "bsp"
    """`bsp`, `ssp` or `asp`."""
    staleness: int = 0
    """For `ssp`: most steps that a worker may be ahead of another."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    seconds: float
    """Until the first worker had made all its steps: then all of them had been at work."""
    steps: int
    """That all workers together had made by then."""
    widest: int
    """Most steps that one worker's pull was ever ahead of another's pushes."""
    missed: float
    """Mean over all pushes: updates of others applied since the parameters were pulled, over the number of workers."""
    moved: float
    """Bytes that went through all links, both ways, in the whole run."""

    @property
    def rate(self) -> float:
        """Steps of a worker a second, of all workers together."""
        return self.steps / self.seconds
