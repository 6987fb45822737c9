"""Steps of a worker that computes nothing, by one codec over one line."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from scripts.benchmarks.measuring.processes import Helper, Shard
from tidemill.clients.parameters import ParametersAdmin, ParametersClient
from tidemill.tensors.blocks import Array

GROUP = "groups/line"


@dataclass(frozen=True, slots=True)
class Steps:
    """What some steps took."""

    push: list[float]
    """Seconds of each push."""
    pull: list[float]
    """Seconds of each pull."""
    chose: str
    """What the client says of a codec that it chose by itself; empty where it says nothing."""
    up: float | None
    """Bytes a step through the line, None where it was not the proxy."""
    down: float | None


def run(shard: Shard, line: tuple[str, Helper | None], codec: str, gradients: Array, warm: int, steps: int) -> Steps:
    """Some steps, in a group made for them. Raises Invalid when there is no such codec.

    Args:
        shard: one of ours.
        line: the address to reach it by, and the proxy behind that if there is one.
        codec: name.
        gradients: of each step.
        warm: steps before the timed ones: `auto` measures in them.
        steps: timed ones.
    """
    address, proxy = line
    asyncio.run(_prepare(shard.address, len(gradients)))
    try:
        out = np.zeros_like(gradients)
        with ParametersClient([shard.address], GROUP, shared=False) as straight:
            straight.load(out)
        with ParametersClient([address], GROUP, shared=False, codec=codec) as client:
            push, pull, before = [], [], {"up": 0, "down": 0}
            for step in range(warm + steps):
                if proxy is not None and step == warm:
                    before = proxy.ask()
                began = time.perf_counter()
                client.push(gradients, worker=0, step=step)
                middle = time.perf_counter()
                client.pull(step + 1, out, worker=0)
                push.append(middle - began)
                pull.append(time.perf_counter() - middle)
            after = {way: (count - before[way]) / steps for way, count in proxy.ask().items()} if proxy else {}
            chose: Any = getattr(client, "choice", None)
            return Steps(push[warm:], pull[warm:], str(chose or ""), after.get("up"), after.get("down"))
    finally:
        asyncio.run(_remove(shard.address))


async def _prepare(address: str, elements: int) -> None:
    async with ParametersAdmin([address]) as admin:
        await admin.create_group(GROUP, [("w", (elements,))], optimizer="sgd", parameters={"learning_rate": 1e-3})


async def _remove(address: str) -> None:
    async with ParametersAdmin([address]) as admin:
        await admin.delete_group(GROUP)
