"""Parts of the benchmarks of the parameter server against a real shard: what they measure is what they say."""

import asyncio
import os
from contextlib import closing

import numpy as np
import pytest

from scripts.benchmarks.ladder.rungs import RUNGS, Others
from scripts.benchmarks.line import steps
from scripts.benchmarks.measuring.processes import Helper, Shard
from scripts.benchmarks.stragglers import WAYS
from scripts.benchmarks.straggling import crew
from scripts.benchmarks.straggling.delays import Delays
from tests.support.shards import shards


async def test_every_rung_of_the_ladder_brings_back_what_it_must() -> None:
    async with shards() as cluster:
        shard = Shard(cluster.addresses[0], os.getpid())

        def climb() -> None:
            with Helper("scripts.benchmarks.ladder.peer") as peer:
                others = Others(peer, shard)
                for kind in RUNGS.values():
                    with closing(kind("many", others)) as rung:
                        rung.check()

        await asyncio.to_thread(climb)


@pytest.mark.parametrize(("codec", "size"), [("fp32", 4), ("int8", 1), ("auto", 1)])
async def test_steps_through_the_line_count_what_went_through_it(codec: str, size: int) -> None:
    elements = 250_000
    async with shards() as cluster:
        shard = Shard(cluster.addresses[0], os.getpid())

        def walk() -> steps.Steps:
            with Helper("scripts.benchmarks.line.proxy", shard.address, "--rate=20e6") as proxy:
                line = f"127.0.0.1:{proxy.hear()['port']}", proxy
                gradients = np.random.default_rng(1).standard_normal(elements, np.float32)
                return steps.run(shard, line, codec, gradients, warm=1, steps=2)

        found = await asyncio.to_thread(walk)
    assert len(found.push) == len(found.pull) == 2
    assert found.down is not None
    assert found.up is not None
    # Nobody says how soon `auto` sees that a line of 20 MB/s is slow; but slow it is.
    assert found.up == pytest.approx(size * elements, rel=0.1)
    assert min(found.pull) > 0
    assert bool(found.chose) == (codec == "auto")


@pytest.mark.parametrize("name", WAYS)
async def test_workers_make_as_many_steps_however_they_wait_for_each_other(name: str) -> None:
    delays = Delays(0.001, 0.01, 0.2, 1)
    async with shards() as cluster:
        shard = Shard(cluster.addresses[0], os.getpid())
        found = await asyncio.to_thread(crew.run, shard, WAYS[name], delays, workers=3, steps=60, rate=0.5, seed=1)
    assert sum(found.each) == 60
    assert found.widest <= {"bsp": 1, "ssp3": 4}.get(name, 60)
    assert found.seconds > 20 * 0.001
    # Twenty batches for each worker: it has learned something, and a guess is at log(10).
    assert found.loss < 2.2
