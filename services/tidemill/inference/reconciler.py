"""Brings what is served to what is desired: loads, swaps, unloads, and tries again."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tidemill.clock import Clock
from tidemill.errors import Code, TidemillError
from tidemill.inference.desired import Desired, Version
from tidemill.inference.loaded import Loaded
from tidemill.inference.repository import Model, Repository, State, Status

LOG = logging.getLogger(__name__)
Key = tuple[str, int]

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 10.0
_FINAL = frozenset({Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.UNIMPLEMENTED, Code.DATA_LOSS})
"""Failures that are in the version itself: it never changes, so trying again is in vain."""


class Loads(Protocol):
    """What makes versions run, and ends them."""

    async def load(self, version: Version) -> Loaded:
        """A version that can run. Raises `TidemillError` or OSError."""

    async def unload(self, loaded: Loaded) -> None:
        """Free a version that nobody uses any more."""


@dataclass(slots=True)
class _Slot:
    version: Version
    status: Status
    task: "asyncio.Task[None] | None" = None


class Reconciler:
    """Holds one slot for each desired version, and for each that still stands in for one that is not READY.

    All methods belong to one asyncio loop.

    Args:
        loads: loads and unloads versions.
        repository: gets a new picture after every change.
        settled: awaited with what is desired, each time that nothing is loading any more.
        concurrency: versions that load at a time.
    """

    def __init__(
        self,
        loads: Loads,
        repository: Repository,
        clock: Clock,
        *,
        settled: Callable[[Desired], Coroutine[Any, Any, None]],
        concurrency: int,
    ) -> None:
        self._loads = loads
        self._repository = repository
        self._clock = clock
        self._when_settled = settled
        self._turn = asyncio.Semaphore(concurrency)
        self._desired = Desired()
        self._served: Mapping[str, Mapping[str, int]] = {}
        self._slots: dict[Key, _Slot] = {}
        self._unloading: dict[Loaded, Key] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def want(self, desired: Desired) -> None:
        """Begin to bring about what is desired now; what was desired before does not count any more."""
        self._desired = desired
        replaced = []
        for key, slot in list(self._slots.items()):
            wanted = desired.versions.get(key)
            # A number with another content: the model was deleted and made again. Nothing can stand in for that.
            if (wanted is not None and wanted != slot.version) or (wanted is None and slot.status.loaded is None):
                replaced.append(self._slots.pop(key))
        for key, version in desired.versions.items():
            if key not in self._slots:
                slot = self._slots[key] = _Slot(version, Status(State.LOADING))
                slot.task = self._spawn(self._bring_up(slot))
        self._settle(replaced)

    async def close(self) -> None:
        """Give up what is in work."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _bring_up(self, slot: _Slot) -> None:
        """Load one version, again and again while the failure may pass."""
        pause = FIRST_PAUSE
        while True:
            async with self._turn:
                slot.status, again = await self._attempt(slot.version)
            self._settle([])
            if not again:
                return
            await self._clock.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(pause * 2, LONGEST_PAUSE)

    async def _attempt(self, version: Version) -> tuple[Status, bool]:
        """READY or UNAVAILABLE, and whether another attempt may succeed."""
        where = {"model": version.model, "version": version.number}
        try:
            loaded = await self._loads.load(version)
        except (TidemillError, OSError) as error:
            again = not (isinstance(error, TidemillError) and error.code in _FINAL)
            LOG.warning("cannot load a version", extra={**where, "error": str(error), "again": again})
            return Status(State.UNAVAILABLE, str(error)), again
        except Exception:  # one bad version must not end the service of the others
            LOG.error("unexpected error while loading a version", extra=where, exc_info=True)
            return Status(State.UNAVAILABLE, "an unexpected error happened; see the server's log"), False
        LOG.info("version is ready", extra={**where, "devices": ",".join(loaded.devices)})
        return Status(State.READY, loaded=loaded), False

    def _settle(self, gone: list[_Slot]) -> None:
        """Move aliases to what is READY, show the new picture, and let go of what no alias serves."""
        self._served = {
            model: {alias: self._target(model, alias, number) for alias, number in aliases.items()}
            for model, aliases in self._desired.aliases.items()
        }
        needed = {(model, number) for model, mine in self._served.items() for number in mine.values()}
        for key in [key for key in self._slots if key not in needed and key not in self._desired.versions]:
            gone.append(self._slots.pop(key))
        for slot in gone:
            if slot.status.loaded is not None:
                self._unloading[slot.status.loaded] = (slot.version.model, slot.version.number)
        self._publish()
        for slot in gone:
            self._let_go(slot)
        if not any(slot.status.state is State.LOADING for slot in self._slots.values()):
            self._spawn(self._when_settled(self._desired))

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
        for model, number in self._unloading.values():
            versions.setdefault(model, {})[number] = Status(State.UNLOADING)
        for (model, number), slot in self._slots.items():
            versions.setdefault(model, {})[number] = slot.status
        self._repository.publish(
            {model: Model(statuses, self._served.get(model, {})) for model, statuses in versions.items()}
        )

    def _let_go(self, slot: _Slot) -> None:
        if slot.task is not None and slot.task is not asyncio.current_task():
            slot.task.cancel()
        if (loaded := slot.status.loaded) is None:
            return
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
