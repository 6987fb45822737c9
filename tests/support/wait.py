"""Waiting for something that other processes or tasks bring about, without fixed sleeps."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any


async def until(condition: Callable[[], Any], timeout: float = 20.0, what: str = "") -> Any:
    """The first true value of `condition`, asked every 20 ms for at most `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"did not happen within {timeout} s: {what or condition}")
        await asyncio.sleep(0.02)
