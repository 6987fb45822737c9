"""Follows the registry: what its aliases point at is what shall be served."""

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol

from tidemill.clients.backoff import Backoff
from tidemill.clock import Clock
from tidemill.errors import NotFound, OutOfRange, TidemillError
from tidemill.inference import convert
from tidemill.inference.desired import Desired, Version
from tidemill.inference.view import View
from tidemill.telemetry.startup import StartUp

LOG = logging.getLogger(__name__)


class Registry(Protocol):
    """What is needed of `tidemill.clients.registry.RegistryClient`."""

    async def revision(self) -> int:
        """Revision of the event log now."""

    def list_models(self) -> AsyncIterator[Any]:
        """All models."""

    def list_aliases(self) -> AsyncIterator[Any]:
        """All aliases of all models."""

    async def get_version(self, model: str, version: int) -> Any:
        """One version."""

    def watch(self, from_revision: int) -> AsyncGenerator[Any, None]:
        """All changes from a revision on."""


class Follower:
    """Tells what shall be served, each time that it changes.

    Args:
        registry: followed; while it is away, nothing is told.
        want: awaited with what shall be served.
        clock: times the pauses between attempts.
    """

    def __init__(self, registry: Registry, want: Callable[[Desired], Awaitable[None]], clock: Clock) -> None:
        self._registry = registry
        self._want = want
        self._clock = clock
        self._backoff = Backoff(0.1, 5.0)
        self._start_up = StartUp(clock)
        self._versions: dict[tuple[str, int], Version] = {}

    async def run(self) -> None:
        """List, then watch; list again when the watch is lost, for ever."""
        while True:
            try:
                await self._follow()
            except OutOfRange:
                LOG.info("the registry's log does not reach back so far: listing again")
            except TidemillError as error:
                LOG.log(self._start_up.level, "the registry cannot be followed now", extra={"error": error.message})
            await self._clock.sleep(self._backoff.next())

    async def _follow(self) -> None:
        view = View()
        self._versions.clear()
        start = await self._registry.revision()
        async for model in self._registry.list_models():
            convert.add_model(view, model)
        async for alias in self._registry.list_aliases():
            convert.add_alias(view, alias)
        # The lists may be from different moments up to this one; what happened meanwhile comes again as events, and an
        # alias that moved twice would be seen to go back: nothing is told before the watch has come this far.
        listed = await self._registry.revision()
        if listed == start:
            await self._tell(view)
        changed = listed != start
        async with aclosing(self._registry.watch(start + 1)) as responses:
            async for response in responses:
                changed |= convert.apply(view, response.events)
                if changed and response.revision >= listed:
                    await self._tell(view)
                    changed = False

    async def _tell(self, view: View) -> None:
        """Fetch the versions that are new to the view, and tell."""
        pointed, dropped = view.pointed, view.take_dropped()
        self._versions = {
            key: version for key, version in self._versions.items() if key in pointed and key[0] not in dropped
        }
        for model, number in pointed - self._versions.keys():
            try:
                message = await self._registry.get_version(model, number)
            except NotFound:  # gone meanwhile: an event that says so is on its way
                continue
            self._versions[model, number] = convert.to_version(message)
        self._backoff.reset()
        await self._want(Desired.of(view.aliases, self._versions.values()))
