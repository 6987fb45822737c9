"""Keeps the references of model versions in step with the registry: what a version needs cannot be deleted.

A version's reference is `models/{model}/versions/{number}`. It is added to the version's artifact when the version
appears, and taken from all artifacts that hold it when the version is gone. What happened while nobody followed is put
right by passes over all references. A pass removes a reference that belongs to no version only if a pass at least
`grace` seconds before has seen it too: whoever is about to create a version may protect its files first.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from tidemill import errors, names
from tidemill.artifacts import convert, keys
from tidemill.artifacts.catalog import Catalog, Held
from tidemill.artifacts.changes import Appeared, Gone
from tidemill.clients.backoff import Backoff
from tidemill.clock import Clock
from tidemill.telemetry.startup import StartUp

LOG = logging.getLogger(__name__)


class Registry(Protocol):
    """What is needed of `tidemill.clients.registry.RegistryClient`."""

    async def revision(self) -> int:
        """Revision of the event log now."""

    def list_models(self) -> AsyncIterator[Any]:
        """All models."""

    def list_versions(self, model: str) -> AsyncIterator[Any]:
        """All versions of a model."""

    async def get_version(self, model: str, version: int) -> Any:
        """One version."""

    def watch(self, from_revision: int) -> AsyncGenerator[Any, None]:
        """All changes from a revision on."""


@dataclass(slots=True)
class _Known:
    """What the registry has told up to a revision: the artifact of every version, by the version's name."""

    revision: int
    artifacts: dict[str, str]


class Keeper:
    """Follows the registry, and keeps references in step.

    Args:
        registry: followed; while it is away, nothing changes.
        catalog: holds the references.
        clock: times the pauses between attempts and between passes.
        grace: seconds for which a reference that belongs to no version stays at least.
    """

    def __init__(self, registry: Registry, catalog: Catalog, clock: Clock, grace: float) -> None:
        self._registry = registry
        self._catalog = catalog
        self._clock = clock
        self._grace = grace
        self._backoff = Backoff(0.1, 30.0)
        self._start_up = StartUp(clock)
        self._turn = asyncio.Lock()
        self._known: _Known | None = None
        self._orphans: dict[Held, float] = {}

    async def run(self) -> None:
        """Follow and make passes, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_on())
            tasks.create_task(self._pass_on())

    async def _follow_on(self) -> None:
        while True:
            try:
                await self._follow()
            except errors.OutOfRange:
                LOG.info("the registry's log does not reach back so far: listing again")
            except errors.TidemillError as error:
                LOG.log(
                    self._start_up.level, "references cannot follow the registry now", extra={"error": error.message}
                )
            await self._clock.sleep(self._backoff.next())

    async def _pass_on(self) -> None:
        while True:
            await self._clock.sleep(self._grace)
            try:
                await self.check()
            except errors.TidemillError as error:
                LOG.warning("references cannot be checked now", extra={"error": error.message})

    async def _follow(self) -> None:
        start = await self._registry.revision()
        found: dict[str, str] = {}
        async for model in self._registry.list_models():
            try:
                async for message in self._registry.list_versions(convert.model(model)):
                    version = convert.to_version(message)
                    found[version.name] = version.artifact
            except errors.NotFound:  # deleted meanwhile: an event that says so is on its way
                continue
        async with self._turn:
            self._known = known = _Known(start, found)
        await self.check()
        self._backoff.reset()
        async with aclosing(self._registry.watch(start + 1)) as responses:
            async for response in responses:
                async with self._turn:
                    for change in convert.changes(response.events):
                        await self._apply(change, known.artifacts)
                    known.revision = response.revision

    async def _apply(self, change: Appeared | Gone, known: dict[str, str]) -> None:
        match change:
            case Appeared(name, artifact):
                known[name] = artifact
                await self._add(name, artifact)
            case Gone(versions):
                before = {name: known.pop(name, "") for name in versions}
                await self._forget(before)

    async def _forget(self, before: dict[str, str]) -> None:
        """Take back the references of versions that are gone, by name; their artifacts are given as far as known."""
        wanted = {keys.digest(name): name for name in before}
        held = [each async for each in self._catalog.held() if each.reference in wanted]
        # Asked after looking: what was seen cannot belong to a version that comes, under an old name, after the answer.
        for name in {wanted[each.reference] for each in held}:
            current = await self._artifact(name)
            for each in held:
                if wanted[each.reference] == name and (current is None or current != before[name] == each.artifact):
                    await self._remove(name, each.artifact)

    async def check(self) -> None:
        """Make one pass: add references that are missing, and remove those that were orphans for long enough.

        Nothing is done before the registry has been listed once.
        """
        async with self._turn:
            if self._known is None:
                return
            missing = {(artifact, keys.digest(name)): name for name, artifact in self._known.artifacts.items()}
            versions = {keys.digest(name) for name in self._known.artifacts}
            strangers = []
            async for each in self._catalog.held():
                missing.pop((each.artifact, each.reference), None)
                if each.reference not in versions:
                    strangers.append(each)
            for (artifact, _), name in missing.items():
                await self._add(name, artifact)
            # A registry in which nothing ever happened is more likely the wrong one than a reason to delete.
            await self._pass_orphans(strangers if self._known.revision else [])

    async def _pass_orphans(self, strangers: Iterable[Held]) -> None:
        now = self._clock.monotonic()
        seen: dict[Held, float] = {}
        for each in strangers:
            name = await self._catalog.text(each)
            if name is None or not _is_version(name):
                continue
            since = self._orphans.get(each, now)
            if now - since < self._grace:
                seen[each] = since
            elif await self._artifact(name) is None:
                await self._remove(name, each.artifact)
        self._orphans = seen

    async def _artifact(self, name: str) -> str | None:
        """The artifact of a version as the registry has it now; None when there is no such version."""
        model, number = names.split(name, "models", "versions")
        try:
            return convert.to_version(await self._registry.get_version(model, int(number))).artifact
        except errors.NotFound:
            return None

    async def _add(self, name: str, artifact: str) -> None:
        await self._tolerantly(partial(self._catalog.add_reference, artifact, name), name, artifact)

    async def _remove(self, name: str, artifact: str) -> None:
        LOG.info("a reference of a version that is gone is removed", extra={"version": name, "artifact": artifact})
        await self._tolerantly(partial(self._catalog.remove_reference, artifact, name), name, artifact)

    async def _tolerantly(self, change: partial[Any], name: str, artifact: str) -> None:
        """One artifact that cannot be changed must not keep the others from it; the next pass tries again."""
        try:
            await change()
        except (errors.NotFound, errors.Invalid, errors.Exhausted, errors.DataLoss) as error:
            LOG.warning("%s", error.message, extra={"version": name, "artifact": artifact, "reason": error.reason})


def _is_version(reference: str) -> bool:
    """Whether a reference is the canonical name of a version."""
    try:
        _, number = names.split(reference, "models", "versions")
    except errors.Invalid:
        return False
    return number.isascii() and number.isdigit() and len(number) < 19 and str(int(number)) == number
