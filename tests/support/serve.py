"""Runs an app inside a test, on free ports of loopback."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tidemill.rpc.app import App


@asynccontextmanager
async def serving(app: App) -> AsyncIterator[str]:
    """Start `app`, give its gRPC address, and stop it at the end."""
    await app.start()
    try:
        yield app.address
    finally:
        await app.stop(grace=1)
