"""Brings what is served to what is desired: loads, swaps, unloads, and tries again."""

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tidemill.clock import Clock
from tidemill.errors import Code, TidemillError
from tidemill.inference.dependencies import Waiting, ready_to_load
from tidemill.inference.desired import Desired, Version
from tidemill.inference.loaded import Loaded
from tidemill.inference.repository import Model, Repository, State, Status

LOG = logging.getLogger(__name__)
Key = tuple[str, int]

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
_FINAL = frozenset({Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED, Code.DATA_LOSS})
"""Failures that are in the version itself: it never changes, so trying again is in vain."""
UNLOADED = "unloaded"
"""What the index says of versions that were there."""


class Loads(Protocol):
    """What makes versions run, and ends them."""

    async def load(self, version: Version) -> Loaded:
        """A version that can run. Raises `TidemillError` or OSError."""

    async def unload(self, loaded: Loaded) -> None:
        """Free a version that nobody uses any more."""


@dataclass(slots=True)
class _Slot:
    """A version, and what serves its number meanwhile: the content that it had before, if that stands in for it."""

    version: Version
    status: Status
    before: Loaded | None = None
    task: "asyncio.Task[None] | None" = None

    @property
    def serving(self) -> Loaded | None:
        return self.status.loaded or self.before

    @property
    def shown(self) -> Status:
        if self.status.loaded is None and self.before is not None:
            return Status(State.READY, self.status.reason, self.before)
        return self.status


class Reconciler:
    """Holds one slot for each desired version, and for each that still stands in for one that is not READY.

    All methods belong to one asyncio loop.

    Args:
        loads: loads and unloads versions.
        repository: gets a new picture after every change.
        settled: awaited with what is desired, each time that nothing is loading any more.
        concurrency: versions that load at a time.
        retries: whether loads that failed for reasons that may pass are tried again.
    """

    def __init__(
        self,
        loads: Loads,
        repository: Repository,
        clock: Clock,
        *,
        settled: Callable[[Desired], Coroutine[Any, Any, None]],
        concurrency: int,
        retries: bool = True,
    ) -> None:
        self._loads = loads
        self._repository = repository
        self._clock = clock
        self._when_settled = settled
        self._turn = asyncio.Semaphore(concurrency)
        self._retries = retries
        self._desired = Desired()
        self._served: Mapping[str, Mapping[str, int]] = {}
        self._slots: dict[Key, _Slot] = {}
        self._unloading: dict[Loaded, Key] = {}
        self._gone: set[Key] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._closed = False

    def want(self, desired: Desired, again: Collection[Key] = ()) -> None:
        """Begin to bring about what is desired now; what was desired before does not count any more.

        Args:
            desired: all of it.
            again: versions to try again if they failed.
        """
        self._desired = desired
        gone: list[Loaded] = []
        for key, slot in list(self._slots.items()):
            wanted = desired.versions.get(key)
            failed = key in again and slot.status.state is State.UNAVAILABLE
            if wanted is None and slot.serving is None:
                self._drop(key, gone)
            elif wanted is not None and (wanted != slot.version or failed):
                self._replace(key, wanted, gone)
        for key, version in desired.versions.items():
            if key not in self._slots:
                self._begin(key, version, None)
        self._settle(gone)

    async def until_loaded(self, keys: Collection[Key]) -> dict[Key, Status]:
        """What became of these versions, once none of them is loading: without those that are not desired any more."""
        while True:
            changed = self._changed
            found = {key: self._slots[key].status for key in keys if key in self._slots}
            if not any(status.state is State.LOADING for status in found.values()):
                return found
            await changed.wait()

    async def close(self) -> None:
        """Give up what is in work."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _begin(self, key: Key, version: Version, before: Loaded | None) -> None:
        if before is not None and before.version == version:  # it is again what serves
            self._slots[key] = _Slot(version, Status(State.READY, loaded=before))
            return
        slot = self._slots[key] = _Slot(version, Status(State.LOADING), before)
        slot.task = self._spawn(self._bring_up(slot))

    def _replace(self, key: Key, wanted: Version, gone: list[Loaded]) -> None:
        """Another content for a number. It stands in for the new one, or has nothing to do with it."""
        slot = self._slots[key]
        before = slot.serving if self._desired.keeps else None
        self._drop(key, gone, but=before)
        self._begin(key, wanted, before)

    def _drop(self, key: Key, gone: list[Loaded], but: Loaded | None = None) -> None:
        """Forget a slot, and give up its load; what it serves is `gone`, except for one."""
        slot = self._slots.pop(key)
        if slot.task is not None and slot.task is not asyncio.current_task():
            slot.task.cancel()
        for loaded in (slot.status.loaded, slot.before):
            if loaded is not None and loaded is not but:
                self._unloading[loaded] = key
                gone.append(loaded)

    async def _bring_up(self, slot: _Slot) -> None:
        """Load one version, again and again while the failure may pass."""
        pause = FIRST_PAUSE
        while True:
            again = await self._attempt(slot)
            gone = []
            if slot.status.loaded is not None and slot.before is not None:
                gone.append(slot.before)
                self._unloading[slot.before] = (slot.version.model, slot.version.number)
                slot.before = None
            self._settle(gone)
            if not again or not self._retries:
                return
            await self._clock.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _attempt(self, slot: _Slot) -> bool:
        """Make it READY or UNAVAILABLE; whether another attempt may succeed."""
        version = slot.version
        where = {"model": version.model, "version": version.number}
        try:
            await self._until_steps_are_ready(version)
            async with self._turn:
                loaded = await self._loads.load(version)
        except (TidemillError, OSError) as error:
            again = not (isinstance(error, TidemillError) and error.code in _FINAL)
            LOG.warning("cannot load a version", extra={**where, "error": str(error), "again": again})
            slot.status = Status(State.UNAVAILABLE, str(error))
            return again
        except Exception:  # one bad version must not end the service of the others
            LOG.error("unexpected error while loading a version", extra=where, exc_info=True)
            slot.status = Status(State.UNAVAILABLE, "an unexpected error happened; see the server's log")
            return False
        LOG.info("version is ready", extra={**where, "devices": ",".join(loaded.devices)})
        slot.status = Status(State.READY, loaded=loaded)
        return False

    async def _until_steps_are_ready(self, version: Version) -> None:
        """Raises Invalid for an ensemble of models that are not there."""
        while True:
            changed = self._changed
            states = [(slot.version, slot.shown.state) for slot in self._slots.values()]
            if ready_to_load(version, states) is not Waiting.YES:
                return
            await changed.wait()

    def _settle(self, gone: list[Loaded]) -> None:
        """Move aliases to what is READY, show the new picture, and let go of what is not needed any more."""
        self._served = {
            model: {alias: self._target(model, alias, number) for alias, number in aliases.items()}
            for model, aliases in self._desired.aliases.items()
        }
        needed = {(model, number) for model, mine in self._served.items() for number in mine.values()}
        needed |= self._desired.versions.keys() | self._standing_in()
        for key in [key for key in self._slots if key not in needed]:
            self._gone.add(key)
            self._drop(key, gone)
        self._publish()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for loaded in gone:
            self._let_go(loaded)
        if not any(slot.status.state is State.LOADING for slot in self._slots.values()):
            self._spawn(self._when_settled(self._desired))

    def _standing_in(self) -> set[Key]:
        """READY versions that are not wanted any more, of models that have nothing else yet."""
        if not self._desired.keeps:
            return set()
        wanted = {model for model, _ in self._desired.versions}
        served = {key[0] for key, slot in self._slots.items() if key in self._desired.versions and slot.serving}
        return {key for key, slot in self._slots.items() if slot.serving and key[0] in wanted - served}

    def _target(self, model: str, alias: str, number: int) -> int:
        """The version that an alias serves: what it points at, or what it served before until that is READY."""
        before = self._served.get(model, {}).get(alias)
        for candidate in (number, before):
            slot = self._slots.get((model, candidate)) if candidate is not None else None
            if slot is not None and slot.status.state is State.READY:
                return slot.version.number
        return number

    def _publish(self) -> None:
        versions: dict[str, dict[int, Status]] = {model: {} for model in self._desired.aliases}
        self._gone = {key for key in self._gone if self._desired.keeps and key[0] in versions}
        for model, number in self._gone:
            versions[model][number] = Status(State.UNAVAILABLE, UNLOADED)
        for model, number in self._unloading.values():
            versions.setdefault(model, {})[number] = Status(State.UNLOADING)
        for (model, number), slot in self._slots.items():
            versions.setdefault(model, {})[number] = slot.shown
        problems = self._desired.problems
        self._repository.publish(
            {
                model: Model(statuses, self._served.get(model, {}), problems.get(model, ""))
                for model, statuses in versions.items()
            }
        )

    def _let_go(self, loaded: Loaded) -> None:
        loop = asyncio.get_running_loop()

        def idle() -> None:
            if not self._closed:
                loop.call_soon_threadsafe(lambda: self._spawn(self._unload(loaded)))

        loaded.retire(idle)

    async def _unload(self, loaded: Loaded) -> None:
        await self._loads.unload(loaded)
        del self._unloading[loaded]
        self._publish()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
