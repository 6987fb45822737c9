"""A real worker whose steps are measured: computes, then pushes and pulls, or reduces with all others.

Run with `-m` and what to do as JSON; says when it is ready, begins when told, and says what it measured.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from scripts.benchmarks.measuring.processes import cpu_seconds, lines, told
from tidemill.clients.parameters import ParametersClient
from tidemill.rpc.allocator import keep_chunks
from tidemill.tensors.blocks import Array

MATRIX = 384
"""Rows and columns of the matrices that are multiplied for want of a model."""


class Computing:
    """So many products of matrices: a step's computing that takes a core.

    Args:
        products: of each step.
    """

    def __init__(self, products: int) -> None:
        self._products = products
        self._a = np.random.default_rng(0).standard_normal((MATRIX, MATRIX), np.float32)
        self._b = np.empty_like(self._a)

    def step(self) -> None:
        """Compute."""
        for _ in range(self._products):
            np.matmul(self._a, self._a, out=self._b)


class Phases:
    """What the phases of steps took: of time, of this process's processors, and of the shards'.

    Args:
        shards: numbers of their processes.
    """

    def __init__(self, shards: list[int]) -> None:
        self._shards = shards
        self._found: dict[str, list[tuple[float, float, float]]] = {}

    def timed(self, name: str, action: Callable[[], object]) -> None:
        """Do something, as part of a phase."""
        before = self._read()
        action()
        self._found.setdefault(name, []).append(tuple(b - a for a, b in zip(before, self._read(), strict=True)))  # type: ignore[arg-type]

    def _read(self) -> tuple[float, float, float]:
        return time.perf_counter(), time.process_time(), cpu_seconds(*self._shards)

    def clear(self) -> None:
        """Forget the warm-up."""
        self._found.clear()

    def medians(self) -> dict[str, float]:
        """By phase the seconds, as `phase worker` and `phase shard` the CPU seconds; `step`: of all phases together."""
        found: dict[str, float] = {}
        for name, rows in self._found.items():
            for text, values in zip(("", " worker", " shard"), zip(*rows, strict=True), strict=True):
                found[name + text] = statistics.median(values)
        steps = zip(*([row[0] for row in rows] for rows in self._found.values()), strict=True)
        found["step"] = statistics.median(map(sum, steps))
        return found


def parameter_server(what: dict[str, Any], phases: Phases) -> Callable[[int], None]:
    """A step with a parameter server."""
    client = ParametersClient(what["addresses"], what["group"], shared=False)
    gradients, out = _vector(what), _vector(what)
    computing, rank = Computing(what["products"]), what["rank"]

    def step(number: int) -> None:
        phases.timed("compute", computing.step)
        phases.timed("push", lambda: client.push(gradients, worker=rank, step=number))
        phases.timed("pull", lambda: client.pull(number + 1, out, worker=rank))

    client.pull(0, out, worker=rank)
    return step


def all_reduce(what: dict[str, Any], phases: Phases) -> Callable[[int], None]:
    """A step with gloo's all-reduce."""
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    place = f"file://{what['meeting']}"
    distributed.init_process_group("gloo", init_method=place, rank=what["rank"], world_size=what["workers"])
    gradients, computing = torch.from_numpy(_vector(what)), Computing(what["products"])

    def step(_: int) -> None:
        phases.timed("compute", computing.step)
        phases.timed("reduce", lambda: distributed.all_reduce(gradients))

    return step


def _vector(what: dict[str, Any]) -> Array:
    return np.full(what["bytes"] // 4, 1e-3, np.float32)


def main() -> None:
    """Be ready, begin, measure, tell."""
    keep_chunks()
    what = json.loads(sys.argv[1])
    phases = Phases(what["shards"])
    make = all_reduce if what["mode"] == "all-reduce" else parameter_server
    step = make(what, phases)
    told(ready=True)
    talk = lines()
    next(talk)
    for number in range(what["warm"] + what["steps"]):
        if number == what["warm"]:
            phases.clear()
        step(number)
    told(**phases.medians())
    next(talk, None)


if __name__ == "__main__":
    main()
