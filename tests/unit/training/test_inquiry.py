"""Workers and shards as they are seen: by whom they were heard of, and without waiting for those that do not answer."""

import asyncio
from pathlib import Path

import numpy as np
from opentelemetry import trace

from tests.support.proxy import TcpProxy
from tests.support.shards import shards
from tests.unit.training.test_crew import scene
from tidemill.clients.registry import RegistryClient
from tidemill.training.diagnosis.sights import Condition
from tidemill.training.meter import Beat
from tidemill.training.neighbours import ShardNeighbours


async def test_what_is_known_of_a_worker(tmp_path: Path) -> None:
    async with scene(tmp_path, ranks=2) as stage:
        await stage.started(2)
        await stage.clock.advance(3)
        first, second = stage.crew.sights()
        assert (first.condition, first.silence, first.pid) == (Condition.STARTING, 3.0, 1)
        for step in range(1, 9):
            stage.crew.beat(0, 0, Beat(phase="training", step=2 * step))
            stage.crew.beat(1, 0, Beat(phase="training", step=2 * step))
            await stage.clock.advance(1)
        first, _ = stage.crew.sights()
        assert (first.condition, first.silence, first.at_step, first.step) == (Condition.ALIVE, 1.0, 1.0, 16)
        assert 0.4 < first.pace <= 0.6, "two steps a second"
        for _ in range(6):
            stage.crew.beat(0, 0, Beat(phase="evaluating", step=16))
            await stage.clock.advance(1)
        first, second = stage.crew.sights()
        assert (first.condition, first.phase, first.at_step) == (Condition.ALIVE, "evaluating", 6.0)
        assert (second.condition, second.silence, second.at_step) == (Condition.SILENT, 7.0, 7.0)
        stage.launcher.processes[1].status.set_result(-9)
        await stage.started(3)
        _, second = stage.crew.sights()
        assert (second.attempt, second.condition, second.pid) == (1, Condition.STARTING, 3)


async def test_shards_that_answer_that_do_not_and_that_are_not_there() -> None:
    async with shards(2) as running, TcpProxy(running.addresses[1]) as proxy, RegistryClient("127.0.0.1:1") as registry:
        await running.admin.create_group("groups/g", [("w", [8])], optimizer="sgd", workers=2)
        with running.client("groups/g") as client:
            await asyncio.to_thread(client.load, np.ones(8, np.float32))
            await asyncio.to_thread(client.push, np.ones(8, np.float32), worker=1, step=0, samples=1)
        neighbours = ShardNeighbours(registry, trace.NoOpTracer())
        seen = await neighbours.look("groups/g", running.addresses[0])
        assert (seen.reachable, seen.has_part, seen.is_ready, seen.mode) == (True, True, True, "bsp")
        assert seen.arrived == (1,)
        assert [(member.clock, member.seen > 0) for member in seen.members] == [(0, False), (1, True)]
        seen = await neighbours.look("groups/none", running.addresses[0])
        assert (seen.reachable, seen.has_part) == (True, False)
        proxy.blackhole()
        async with asyncio.timeout(20):
            answers = await asyncio.gather(
                neighbours.look("groups/g", running.addresses[0]),
                *(neighbours.look("groups/g", proxy.address) for _ in range(3)),
                neighbours.look("groups/g", "127.0.0.1:1"),
            )
        assert [(seen.reachable, bool(seen.error)) for seen in answers] == [(True, False), *4 * [(False, True)]]
