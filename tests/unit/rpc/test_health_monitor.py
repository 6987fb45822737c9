"""What the monitor of dependencies says, and how loudly."""

import asyncio
import logging

import pytest

from tests.support.clock import ManualClock
from tidemill.errors import Unavailable
from tidemill.rpc.health import HealthMonitor
from tidemill.telemetry.setup import setup


async def test_a_dependency_that_is_away_is_a_warning_only_when_the_start_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "tidemill.rpc.health")
    clock, away, told = ManualClock(), True, []

    async def check() -> None:
        if away:
            raise Unavailable("nobody listens")

    async def changed(ready: bool) -> None:
        told.append(ready)

    monitor = HealthMonitor({"store": check}, changed, setup("test"), clock)
    task = asyncio.ensure_future(monitor.run())
    await clock.advance(10)
    assert [(record.levelname, record.message) for record in caplog.records] == [("INFO", "dependency is down")]
    await clock.advance(10)
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    away = False
    await clock.advance(1)
    away = True
    await clock.advance(60)
    assert [(record.levelname, record.message) for record in caplog.records[2:]] == [
        ("INFO", "dependency is back"),
        ("WARNING", "dependency is down"),
    ]
    assert told == [False, True, False]
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
