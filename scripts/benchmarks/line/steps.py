"""Steps of a worker that computes nothing, by one codec over one line."""

import asyncio
import itertools
import time
from dataclasses import dataclass

import numpy as np

from scripts.benchmarks.measuring.processes import Helper, Shard
from tidemill.clients.parameters import ParametersAdmin, ParametersClient
from tidemill.compression.choice import AUTO
from tidemill.tensors.blocks import Array

GROUP = "groups/line"
AFTER, DURING = "after backward", "during backward"
PIECES = 20
"""In which gradients come."""


@dataclass(frozen=True, slots=True)
class Steps:
    """What some steps took."""

    push: list[float]
    """Seconds of each push."""
    pull: list[float]
    """Seconds of each pull."""
    chose: str
    """The codec that the client chose by itself, and why; empty where it had no choice."""
    up: float | None
    """Bytes a step through the line, None where it was not the proxy."""
    down: float | None


def run(shard: Shard, line: tuple[str, Helper | None], codec: str, gradients: Array, warm: int, steps: int) -> Steps:
    """Some steps, in a group made for them.

    Args:
        shard: one of ours.
        line: the address to reach it by, and the proxy behind that if there is one.
        codec: name.
        gradients: of each step.
        warm: steps before the timed ones, at least: `auto` makes as many as it needs to choose.
        steps: timed ones.
    """
    address, proxy = line
    asyncio.run(_prepare(shard.address, len(gradients)))
    try:
        out = np.zeros_like(gradients)
        with ParametersClient([shard.address], GROUP, shared=False) as straight:
            straight.load(out)
        with ParametersClient([address], GROUP, shared=False, codec=codec) as client:
            begun = itertools.count()
            for step in itertools.islice(begun, warm):
                _step(client, gradients, out, step)
            while codec == AUTO and client.choice is None:
                _step(client, gradients, out, next(begun))
            before = proxy.ask() if proxy else {}
            times = [_step(client, gradients, out, next(begun)) for _ in range(steps)]
            after = {way: (count - before[way]) / steps for way, count in proxy.ask().items()} if proxy else {}
            push, pull = map(list, zip(*times, strict=True))
            chose = "" if client.choice is None else f"{client.choice.codec}: {client.choice.reason}"
            return Steps(push, pull, chose, after.get("up"), after.get("down"))
    finally:
        asyncio.run(_remove(shard.address))


def turns(shard: Shard, line: str, gradients: Array, backward: float, warm: int, steps: int) -> dict[str, list[float]]:
    """Seconds of steps whose gradients take time to come: sent after that, and while they come, in turn.

    Args:
        shard: one of ours.
        line: the address to reach it by.
        gradients: of each step.
        backward: seconds in which they come, from the last one to the first; nothing is computed.
        warm: steps of each kind before the timed ones.
        steps: timed ones of each kind.
    """
    asyncio.run(_prepare(shard.address, len(gradients)))
    try:
        out = np.zeros_like(gradients)
        with ParametersClient([shard.address], GROUP, shared=False) as straight:
            straight.load(out)
        found: dict[str, list[float]] = {AFTER: [], DURING: []}
        with ParametersClient([line], GROUP, shared=False) as client:
            for number in range(2 * (warm + steps)):
                kind, began = (AFTER, DURING)[number % 2], time.perf_counter()
                if kind == AFTER:
                    time.sleep(backward)
                    client.push(gradients, worker=0, step=number)
                    client.pull(number + 1, out, worker=0)
                else:
                    push = client.begin_push(gradients, worker=0, step=number)
                    for piece in reversed(range(PIECES)):
                        time.sleep(backward / PIECES)
                        push.ready(piece * len(out) // PIECES, (piece + 1) * len(out) // PIECES)
                    client.exchange(push, number + 1, out, worker=0)
                if number >= 2 * warm:
                    found[kind].append(time.perf_counter() - began)
        return found
    finally:
        asyncio.run(_remove(shard.address))


def _step(client: ParametersClient, gradients: Array, out: Array, step: int) -> tuple[float, float]:
    """Seconds of a push, and of the pull of what it makes."""
    began = time.perf_counter()
    client.push(gradients, worker=0, step=step)
    middle = time.perf_counter()
    client.pull(step + 1, out, worker=0)
    return middle - began, time.perf_counter() - middle


async def _prepare(address: str, elements: int) -> None:
    async with ParametersAdmin([address]) as admin:
        await admin.create_group(GROUP, [("w", (elements,))], optimizer="sgd", parameters={"learning_rate": 1e-3})


async def _remove(address: str) -> None:
    async with ParametersAdmin([address]) as admin:
        await admin.delete_group(GROUP)
