"""Our ways to train: how a worker exchanges gradients for parameters, and with what settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tidemill.clients.parameters import Outgoing, ParametersClient


@dataclass(slots=True)
class Worker:
    """What a way to exchange gradients for parameters has at hand."""

    client: ParametersClient
    rank: int
    samples: int
    flat: Any
    """The parameters: one vector of float32, computed with where it lies."""
    gradient: Any
    """Their gradients, likewise."""
    outgoing: Outgoing | None = None
    """The push of the step, when it has begun already."""


def share(worker: Worker, step: int) -> int:
    """The same where gradients and parameters lie in shared memory, and nothing is copied."""
    worker.client.push(worker.gradient, worker=worker.rank, step=step, samples=worker.samples)
    _, worker.flat = worker.client.pull(step + 1, worker.flat, worker=worker.rank, view=True)
    return int(worker.gradient.nbytes + worker.flat.nbytes)


def push_and_pull(worker: Worker, step: int) -> int:
    """Push, then pull the version that all workers' pushes make, or without rounds what there is; the bytes moved."""
    worker.client.push(worker.gradient, worker=worker.rank, step=step, samples=worker.samples)
    worker.client.pull(step + 1, worker.flat, worker=worker.rank)
    return int(worker.gradient.nbytes + worker.flat.nbytes)


def begun(worker: Worker, step: int) -> Outgoing:
    """The push of a step, begun."""
    return worker.client.begin_push(worker.gradient, worker=worker.rank, step=step, samples=worker.samples)


def overlap(worker: Worker, step: int) -> int:
    """The same as the workers of training jobs do it: large gradients have left during backward, pulls do not wait."""
    push = worker.outgoing or begun(worker, step)
    worker.outgoing = None
    worker.client.exchange(push, step + 1, worker.flat, worker=worker.rank)
    return int(worker.gradient.nbytes + worker.flat.nbytes)


@dataclass(frozen=True, slots=True)
class Mode:
    """One way to train."""

    exchange: Callable[[Worker, int], int] = push_and_pull
    exact: bool = True
    """Whether its parameters must be those that one process with all workers' data comes to."""
    shards: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of a shard, by the names of its command line."""
    group: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `ParametersAdmin.create_group`."""
    client: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of `ParametersClient`."""


MODES = {
    "bsp-grpc": Mode(client={"shared": False}),
    "bsp-overlap": Mode(overlap, client={"shared": False}),
    "bsp2-grpc": Mode(shards=2, client={"shared": False}),
    "bsp2-overlap": Mode(overlap, shards=2, client={"shared": False}),
    "bsp-shm": Mode(share, client={"shared": True}),
    "asp-grpc": Mode(client={"shared": False}, group={"mode": "asp"}, exact=False),
    "asp-overlap": Mode(overlap, client={"shared": False}, group={"mode": "asp"}, exact=False),
    "sparse-grpc": Mode(client={"shared": False}, group={"sparse": ("t0",)}),
    "asp-shm": Mode(client={"shared": True}, group={"mode": "asp"}, exact=False),
}
"""By the name that `--modes` takes. The promises in `gates.py` know bsp-grpc, bsp-shm, asp-grpc and sparse-grpc."""

BY_ROWS = frozenset(name for name, mode in MODES.items() if "sparse" in mode.group)
"""Those that need a model that is one table."""
