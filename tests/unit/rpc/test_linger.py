"""A service that stops: first it says so, then it goes on answering for a while, then it takes no more calls."""

import asyncio
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.clock import ManualClock
from tests.support.wait import until
from tidemill.errors import Invalid
from tidemill.rpc.app import App, observer
from tidemill.rpc.config import ServerConfig
from tidemill.rpc.server import AioServer, Server, ThreadServer
from tidemill.telemetry.setup import setup

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.mark.parametrize("kind", ["aio", "threads"])
async def test_says_that_it_will_go_and_answers_on(kind: str) -> None:
    telemetry, clock, steps = setup("toy"), ManualClock(), []
    config = ServerConfig(linger_seconds=8)
    watch = observer(config, telemetry)
    server: Server = AioServer([], watch) if kind == "aio" else ThreadServer([], watch, threads=2)

    async def fine() -> None:
        return

    async def withdraw() -> None:
        steps.append("withdraw")

    async def stop() -> None:
        steps.append("stop")

    app = App(
        "toy",
        config,
        telemetry,
        server,
        checks={"dependency": fine},
        withdrawers=[withdraw],
        stoppers=[stop],
        clock=clock,
    )
    await app.start()
    async with grpc.aio.insecure_channel(app.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)

        async def status() -> int:
            return int((await stub.Check(health_pb2.HealthCheckRequest())).status)

        async def serves() -> bool:
            return bool(await status() == SERVING)

        await until(serves)
        stopping = asyncio.ensure_future(app.stop(grace=0))
        await clock.until_sleeping(2)  # the monitor and the one who lingers
        assert await status() == NOT_SERVING
        assert not app.ready
        await clock.advance(7.9)  # the monitor's next look falls into this: all is well, and yet
        assert await status() == NOT_SERVING
        assert steps == ["withdraw"]
        await clock.advance(0.2)
        await stopping
        assert steps == ["withdraw", "stop"]
        with pytest.raises(grpc.aio.AioRpcError):
            await status()


def test_a_time_below_zero_is_refused() -> None:
    with pytest.raises(Invalid, match="linger_seconds"):
        ServerConfig(linger_seconds=-1)
    with pytest.raises(Invalid, match="drain_seconds"):
        ServerConfig(drain_seconds=-1)
