"""Clients that open streams to a shard and send nothing take it from nobody else."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.shards import GROUP, Shards, shards
from tests.support.wait import until
from tidemill import errors
from tidemill.api.parameters.v1 import parameters_pb2 as pb
from tidemill.api.parameters.v1 import parameters_pb2_grpc as pg
from tidemill.rpc.status import translated

TIMEOUT = 30
"""Seconds after which a call that should be answered at once has failed."""
THREADS: dict[str, Any] = {"threads": 6, "waiting_pulls": 3, "reserved_threads": 2}
PLACES = 4
"""For pushes and loads, with so many threads."""


@asynccontextmanager
async def silent(address: str, method: str, count: int) -> AsyncIterator[list[Any]]:
    """So many open calls of `method` that never send a message."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = pg.ParameterServiceStub(channel)
        calls = [getattr(stub, method)(timeout=TIMEOUT) for _ in range(count)]
        yield calls
        for call in calls:
            call.cancel()


async def refused(calls: list[Any], count: int) -> None:
    """Return when exactly so many calls have ended; all of them were asked to come back."""
    await until(lambda: sum(call.done() for call in calls) == count)
    for call in calls:
        if call.done():
            with pytest.raises(errors.Exhausted) as full, translated():
                await call
            assert full.value.reason == "TOO_MANY_PUSHES"
            assert full.value.retry_after


async def works(cluster: Shards) -> None:
    """Health, an ordinary call and a pull are answered."""
    async with grpc.aio.insecure_channel(cluster.addresses[0]) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
        stub: Any = pg.ParameterServiceStub(channel)
        await stub.GetGroup(pb.GetGroupRequest(name=GROUP), timeout=TIMEOUT)
        pulled = [response async for response in stub.Pull(pb.PullRequest(name=GROUP, version=0), timeout=TIMEOUT)]
        assert pulled


@asynccontextmanager
async def loaded(**settings: Any) -> AsyncIterator[Shards]:
    """A shard with few threads, and a group that has its first values."""
    async with shards(**THREADS, **settings) as cluster:
        await cluster.group(4)
        with cluster.client() as client:
            await asyncio.to_thread(client.load, np.zeros(4, np.float32))
        yield cluster


@pytest.mark.parametrize("method", ["Push", "Load"])
async def test_silent_streams_leave_threads_to_others(method: str) -> None:
    async with loaded() as cluster, silent(cluster.addresses[0], method, 24) as calls:
        await refused(calls, 24 - PLACES)
        await works(cluster)


async def test_silent_streams_end_and_pushes_go_on() -> None:
    async with loaded(silence_seconds=0.5) as cluster, silent(cluster.addresses[0], "Push", PLACES) as calls:
        with cluster.client(patience=TIMEOUT) as client:
            outcome = await asyncio.to_thread(client.push, np.ones(4, np.float32), worker=0, step=0)
        assert (outcome.duplicate, outcome.version) == (False, 1)
        for call in calls:
            assert await call.code() == grpc.StatusCode.CANCELLED
