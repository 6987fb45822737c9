"""Loading and unloading by request, from any thread."""

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from tidemill.errors import Unavailable
from tidemill.inference.modelrepository.manager import Manager


class RepositoryControl:
    """A `ModelControl` for a repository.

    Args:
        manager: lives in the loop that `start` is called in.
    """

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Take requests from now on."""
        self._loop = asyncio.get_running_loop()

    async def stop(self) -> None:
        """Take no more."""
        self._loop = None

    def load(self, model: str, config: str, files: Mapping[str, bytes], version: str = "") -> None:
        """See `ModelControl.load`."""
        self._run(self._manager.load(model, config, files, version))

    def unload(self, model: str, dependents: bool, version: str = "") -> None:
        """See `ModelControl.unload`."""
        self._run(self._manager.unload(model, dependents, version))

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            work.close()
            raise Unavailable("the server does not take requests now", reason="STOPPING")
        try:
            asyncio.run_coroutine_threadsafe(work, loop).result()
        except asyncio.CancelledError as error:
            raise Unavailable("the server stops", reason="STOPPING") from error
