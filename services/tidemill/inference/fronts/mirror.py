"""The copies that a front holds: always those of the last picture, and never another version in their place."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from tidemill.errors import TidemillError
from tidemill.inference.desired import Version
from tidemill.inference.fronts.picture import Copy, Picture
from tidemill.inference.loaded import Loaded

LOG = logging.getLogger(__name__)


class Mirror:
    """Loads what a picture shows, and lets go of what it does not show any more. Belongs to one asyncio loop.

    A version that is not loaded here, or not yet, is unknown here: requests for it are passed on.

    Args:
        load, unload: as `Loader` does it.
    """

    def __init__(
        self,
        load: Callable[[Version], Awaitable[Loaded]],
        unload: Callable[[Loaded], Awaitable[None]],
    ) -> None:
        self._load = load
        self._unload = unload
        self._picture = Picture()
        self._index: Mapping[tuple[str, str], Loaded] = {}
        self._loaded: dict[str, Loaded] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Semaphore(1)

    def show(self, picture: Picture) -> None:
        """From the return on, no request is answered with what `picture` does not show."""
        self._picture = picture
        wanted = {copy.key: copy for copy in picture.copies}
        for key in [key for key in self._loading if key not in wanted]:
            self._loading.pop(key).cancel()
        gone = [self._loaded.pop(key) for key in list(self._loaded) if key not in wanted]
        self._publish()
        for loaded in gone:
            self._let_go(loaded)
        for key, copy in wanted.items():
            if key not in self._loaded and key not in self._loading:
                self._loading[key] = self._spawn(self._bring_up(copy))

    def acquire(self, model: str, version: str) -> Loaded | None:
        """The copy that serves such a request, in use until its context ends; None when there is none here.

        Called from any thread.
        """
        loaded = self._index.get((model, version))
        return loaded if loaded is not None and loaded.acquire() else None

    def brief(self, model: str, version: str) -> bool:
        """Whether such a request would be answered here, in a moment."""
        loaded = self._index.get((model, version))
        return loaded is not None and loaded.scheduler.brief

    async def settled(self) -> None:
        """Return when nothing is being loaded."""
        while self._loading:
            await asyncio.wait(list(self._loading.values()))

    def copies(self) -> dict[str, Loaded]:
        """What is loaded, by key."""
        return dict(self._loaded)

    async def close(self) -> None:
        """Give up what is in work."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _bring_up(self, copy: Copy) -> None:
        try:
            async with self._turn:
                self._loaded[copy.key] = await self._load(copy.version)
        except (TidemillError, OSError) as error:  # the first process has it: requests are passed on
            LOG.warning(
                "no copy of a version here", extra={"model": copy.model, "version": copy.number, "error": str(error)}
            )
        finally:
            self._loading.pop(copy.key, None)
        self._publish()

    def _publish(self) -> None:
        """Replace the index as a whole: a request finds a version under its number, its aliases, and perhaps none."""
        index: dict[tuple[str, str], Loaded] = {}
        for copy in self._picture.copies:
            if (loaded := self._loaded.get(copy.key)) is None:
                continue
            names = [str(copy.number)]
            names += [alias for alias, n in self._picture.aliases.get(copy.model, {}).items() if n == copy.number]
            if self._picture.default.get(copy.model) == copy.number:
                names.append("")
            index |= {(copy.model, name): loaded for name in names}
        self._index = index

    def _let_go(self, loaded: Loaded) -> None:
        loop = asyncio.get_running_loop()

        def idle() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(lambda: self._spawn(self._free(loaded)))

        loaded.retire(idle)

    async def _free(self, loaded: Loaded) -> None:
        await self._unload(loaded)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
