"""A training service in a process of its own, which can be killed and started again."""

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from tests.support.training import World
from tests.support.wait import until
from tidemill import config

_OWN = {
    "registry_address": "TIDEMILL_REGISTRY_ADDRESS",
    "artifacts_address": "TIDEMILL_ARTIFACTS_ADDRESS",
    "worker_command": "TIDEMILL_TRAINING_WORKER_COMMAND",
}
"""Variables of settings that are not named after the service."""


class Process:
    """A training service beside neighbours that run."""

    def __init__(self, neighbours: World, settings: Mapping[str, object], program: tuple[str, ...]) -> None:
        self._folder = neighbours.folder
        self._settings = {**neighbours.settings, **settings}
        self._program = program
        self._process: asyncio.subprocess.Process | None = None

    async def begin(self, **environment: str) -> None:
        """Start it, and wait for nothing."""
        announced = self._folder / "ports.json"
        announced.unlink(missing_ok=True)
        given = {**self._settings, "announce_file": announced}
        variables = {
            _OWN.get(name, f"TIDEMILL_TRAINING_{name.upper()}"): ",".join(value)
            if isinstance(value, tuple)
            else str(value)
            for name, value in given.items()
        }
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *self._program, env={**config.environ(), **variables, **environment}
        )

    async def start(self) -> str:
        """Start it; its address."""
        await self.begin()
        announced = self._folder / "ports.json"
        await until(announced.exists, 30)
        return f"127.0.0.1:{json.loads(announced.read_text())['grpc']}"

    async def ended(self) -> int:
        """Its exit status, once it has ended."""
        assert self._process is not None
        return await self._process.wait()

    async def end(self, how: signal.Signals) -> int:
        """End it; its exit status."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(how)
        return await self._process.wait()


@asynccontextmanager
async def process(
    neighbours: World, program: tuple[str, ...] = ("tidemill.training",), **settings: object
) -> AsyncIterator[Process]:
    """A service that is started by the block, and killed at its end if it still runs."""
    running = Process(neighbours, settings, program)
    try:
        yield running
    finally:
        await running.end(signal.SIGKILL)
