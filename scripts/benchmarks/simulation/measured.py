"""Real runs, small enough for one host, that the simulation is calibrated on and held against."""

import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scripts.benchmarks.measuring.processes import Helper, Shard
from scripts.benchmarks.simulation.worker import Computing
from tidemill.clients.parameters import ParametersAdmin, ParametersClient

GROUP = "groups/simulation"
WARM = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One real run."""

    workers: int
    shards: int = 1
    bytes: int
    mode: str = "bsp"
    """`bsp`, `asp` or `all-reduce`."""


def measure(setup: Setup, shards: Sequence[Shard], products: int, steps: int) -> dict[str, float]:
    """The medians over all workers of what `Phases.medians` says.

    Args:
        setup: what to run.
        shards: at least as many as that needs.
        products: of matrices, that a step computes.
        steps: timed ones.
    """
    used = list(shards[: setup.shards])
    addresses = [shard.address for shard in used]
    server = setup.mode != "all-reduce"
    if server:
        asyncio.run(_create(addresses, setup))
    try:
        if server:
            with ParametersClient(addresses, GROUP, shared=False) as client:
                client.load(np.zeros(setup.bytes // 4, np.float32))
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            what = {
                "addresses": addresses,
                "group": GROUP,
                "workers": setup.workers,
                "bytes": setup.bytes,
                "mode": setup.mode,
                "meeting": str(Path(folder) / "meeting"),
                "products": products,
                "warm": WARM,
                "steps": steps,
                "shards": [shard.pid for shard in used] if server else [],
            }
            crew = [
                stack.enter_context(Helper("scripts.benchmarks.simulation.worker", json.dumps({**what, "rank": rank})))
                for rank in range(setup.workers)
            ]
            for worker in crew:
                worker.hear()
            for worker in crew:
                worker.say(go=True)
            told = [worker.hear() for worker in crew]
            return {name: statistics.median(one[name] for one in told) for name in told[0]}
    finally:
        if server:
            asyncio.run(_delete(addresses))


async def _create(addresses: list[str], setup: Setup) -> None:
    async with ParametersAdmin(addresses) as admin:
        await admin.create_group(
            GROUP,
            [("w", (setup.bytes // 4,))],
            optimizer="sgd",
            parameters={"learning_rate": 1e-3},
            workers=setup.workers,
            mode=setup.mode,
        )


async def _delete(addresses: list[str]) -> None:
    async with ParametersAdmin(addresses) as admin:
        await admin.delete_group(GROUP)


def products_for(seconds: float) -> int:
    """How many products of matrices take a processor so long."""
    computing = Computing(10)
    times = []
    for _ in range(5):
        began = time.thread_time()
        computing.step()
        times.append(time.thread_time() - began)
    return max(1, round(10 * seconds / statistics.median(times)))


def touch() -> float:
    """CPU seconds a byte for adding one vector to another, block by block."""
    one, other = np.ones(1 << 23, np.float32), np.ones(1 << 23, np.float32)
    times = []
    for _ in range(5):
        began = time.thread_time()
        for start in range(0, len(one), 1 << 18):
            other[start : start + (1 << 18)] += one[start : start + (1 << 18)]
        times.append(time.thread_time() - began)
    return statistics.median(times) / one.nbytes
