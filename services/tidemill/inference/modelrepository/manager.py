"""Says what of a repository shall be served: all of it, what it holds at each look, or what is asked for."""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from enum import Enum

from tidemill import names
from tidemill.clock import Clock
from tidemill.errors import Internal, Invalid, NotFound, TidemillError, Unavailable
from tidemill.inference.control import POLLED
from tidemill.inference.dependencies import steps_of
from tidemill.inference.desired import Desired, Version
from tidemill.inference.inputs import shown
from tidemill.inference.modelrepository.scan import Found, Scanner
from tidemill.inference.reconciler import Key, Reconciler
from tidemill.inference.repository import State, Status

LOG = logging.getLogger(__name__)
ALL = "*"
"""In place of the name of a model to load at the start."""
NOT_POLLED = "failed to poll from model repository"


class Mode(Enum):
    """When models are loaded and unloaded."""

    NONE = "none"
    """All at the start, and never again."""
    POLL = "poll"
    """As the repository changes."""
    EXPLICIT = "explicit"
    """By request."""


class Manager:
    """Keeps what the repository holds apart from what of it is wanted. All methods belong to one asyncio loop.

    Args:
        scanner: reads the repository.
        reconciler: brings about what is wanted.
        clock: times the looks.
        mode: when models come and go.
        pause: seconds from one look to the next.
        first: models to load at the start by `Mode.EXPLICIT`; `ALL` = every one.
    """

    def __init__(
        self,
        scanner: Scanner,
        reconciler: Reconciler,
        clock: Clock,
        *,
        mode: Mode,
        pause: float,
        first: Collection[str] = (),
    ) -> None:
        self._scanner = scanner
        self._reconciler = reconciler
        self._clock = clock
        self._mode = mode
        self._pause = pause
        self._first = first
        self._known: list[str] = []
        self._wanted: dict[str, dict[int, Version]] = {}
        self._problems: dict[str, str] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self.ready = False

    async def start(self) -> None:
        """Load what is to be loaded at the start; returns when all of it is READY or has failed.

        Raises:
            NotFound: the repository, or a model to load, is not there.
        """
        self._known = await asyncio.to_thread(self._scanner.models)
        if self._mode is not Mode.EXPLICIT or ALL in self._first:
            await self._look(self._known)
        else:
            if missing := sorted(set(self._first) - set(self._known)):
                raise NotFound(f"the repository has no model '{shown(missing[0])}'", reason="MODEL_NOT_FOUND")
            await self._look(sorted(await self._with_steps(self._first)))
        self._want()
        await self._reconciler.until_loaded(self._keys(self._wanted))
        self.ready = True

    async def run(self) -> None:
        """Look at the repository again and again, if that is the mode."""
        while self._mode is Mode.POLL:
            await self._clock.sleep(self._pause)
            try:
                await self.look()
            except TidemillError as error:  # what is served goes on being served
                LOG.error("the repository cannot be read", extra={"error": error.message})
        await asyncio.Event().wait()

    async def look(self) -> None:
        """Follow what has changed in the repository. Raises NotFound when it cannot be read."""
        before = (self._known, self._wanted, self._problems)
        self._known = await asyncio.to_thread(self._scanner.models)
        self._wanted = {model: wanted for model, wanted in self._wanted.items() if model in self._known}
        self._problems = {}
        await self._look(self._known)
        if (self._known, self._wanted, self._problems) != before:
            ensembles = [version for mine in self._wanted.values() for version in mine.values() if steps_of(version)]
            self._want(again=[(version.model, version.number) for version in ensembles])

    async def load(self, model: str, config: str, files: Mapping[str, bytes], version: str = "") -> None:
        """See `ModelControl.load`."""
        self._check_explicit()
        names.check(model, "model_name")
        number = _number(version)
        async with self._turn(model):
            try:
                found = await self._found(model, config, files, number)
            except NotFound as error:
                raise self._failed(model, NOT_POLLED, error) from error
            except Invalid as error:
                if error.reason in ("INVALID_NAME", "INVALID_PATH"):
                    raise Invalid(f"failed to load '{model}', {error.message}", reason=error.reason) from error
                raise self._failed(model, f"{NOT_POLLED}: {error.message}", error) from error
            mine = found.versions
            if number is not None:
                if number not in mine:
                    raise Internal(f"failed to load '{model}', it has no version {number}", reason="LOAD_FAILED")
                mine = {**self._wanted.get(model, {}), number: mine[number]}
            if not mine:
                raise Internal(f"failed to load '{model}', no version is available", reason="LOAD_FAILED")
            await self._bring_up(model, mine, [number] if number is not None else list(mine))

    async def unload(self, model: str, dependents: bool, version: str = "") -> None:
        """See `ModelControl.unload`."""
        self._check_explicit()
        names.check(model, "model_name")
        number = _number(version)
        async with self._turn(model):
            mine = self._wanted.get(model)
            if mine is None:
                await self._refresh()
                if model not in self._known:
                    raise NotFound(f"failed to unload '{model}', no such model", reason="MODEL_NOT_FOUND")
                return
            if number is not None and number not in mine:
                raise NotFound(f"failed to unload '{model}', version {number} is not loaded", reason="MODEL_NOT_FOUND")
            left = {key: value for key, value in mine.items() if number is not None and key != number}
            self._set(model, left)
            if dependents and not left:
                self._drop_unused({step for gone in mine.values() for step in steps_of(gone)})
            await self._refresh()
            self._want()

    async def _bring_up(self, model: str, mine: Mapping[int, Version], numbers: Iterable[int]) -> None:
        """Want these versions of a model, with the models that they are made of; return when they are READY."""
        await self._refresh()
        steps = {step for version in mine.values() for step in steps_of(version)} - self._wanted.keys()
        await self._look(sorted(await self._with_steps(steps) - {model}))
        unknown = model not in self._wanted
        self._set(model, mine)
        keys = [(model, number) for number in numbers]
        again = [*keys, *self._keys(steps & self._wanted.keys())]
        self._problems.pop(model, None)
        self._want(again=again)
        done = await self._reconciler.until_loaded(keys)
        failed = {key: status for key, status in done.items() if status.state is not State.READY}
        if failed:
            if unknown and len(failed) == len(done) and all(version.directory is None for version in mine.values()):
                # Nothing but the request knows of it: kept, such models would fill the memory.
                self._set(model, {})
                self._want()
            raise Internal(f"failed to load '{model}', {_reasons(failed)}", reason="LOAD_FAILED")

    async def _found(self, model: str, config: str, files: Mapping[str, bytes], number: int | None) -> Found:
        if files:
            # What is in the folder is not used then; a configuration says that this is meant.
            if not config:
                raise NotFound("files are given without a configuration", reason="NO_CONFIGURATION")
            return await asyncio.to_thread(self._scanner.given, model, config, files)
        also = [number] if number is not None else []
        return await asyncio.to_thread(self._scanner.scan, model, config, also)

    async def _look(self, models: Iterable[str]) -> None:
        """Want what the folders of these models hold now; of one that is broken, what was wanted before."""
        for model in models:
            try:
                found = await asyncio.to_thread(self._scanner.scan, model)
            except TidemillError as error:
                LOG.warning("a model of the repository is broken", extra={"model": model, "error": error.message})
                self._problems[model] = error.message
                continue
            if found.versions:
                self._wanted[model] = dict(found.versions)
            else:
                self._problems[model] = "no version is available"
                self._wanted.pop(model, None)

    async def _with_steps(self, models: Iterable[str]) -> set[str]:
        """These models, and all that they are made of."""
        found: set[str] = set()
        waiting = list(models)
        while waiting:
            model = waiting.pop()
            if model in found:
                continue
            found.add(model)
            try:
                scanned = await asyncio.to_thread(self._scanner.scan, model)
            except TidemillError:  # is said when the model itself is looked at
                continue
            waiting += [step for version in scanned.versions.values() for step in steps_of(version)]
        return found

    async def _refresh(self) -> None:
        """Know which models are there, for the index."""
        try:
            self._known = await asyncio.to_thread(self._scanner.models)
        except NotFound as error:
            LOG.error("the repository cannot be read", extra={"error": error.message})

    def _want(self, again: Collection[Key] = ()) -> None:
        versions = {(model, number): v for model, mine in self._wanted.items() for number, v in mine.items()}
        known = {*self._known, *self._wanted}
        self._reconciler.want(
            Desired({model: {} for model in known}, versions, keeps=True, problems=dict(self._problems)), again
        )

    def _set(self, model: str, mine: Mapping[int, Version]) -> None:
        if mine:
            self._wanted[model] = dict(mine)
        else:
            self._wanted.pop(model, None)

    def _drop_unused(self, models: set[str]) -> None:
        """Do not want these models any more, nor what they are made of, unless another one is made of them."""
        while models:
            used = {step for mine in self._wanted.values() for version in mine.values() for step in steps_of(version)}
            gone = {model for model in models if model in self._wanted and model not in used}
            models = {step for model in gone for version in self._wanted[model].values() for step in steps_of(version)}
            for model in gone:
                del self._wanted[model]

    def _keys(self, models: Iterable[str]) -> list[Key]:
        return [(model, number) for model in models for number in self._wanted[model]]

    def _turn(self, model: str) -> asyncio.Lock:
        """What keeps requests about one model apart: kept for models that are there."""
        for name in [name for name, lock in self._turns.items() if not lock.locked() and name not in self._known]:
            del self._turns[name]
        return self._turns.setdefault(model, asyncio.Lock())

    def _check_explicit(self) -> None:
        if self._mode is not Mode.EXPLICIT:
            raise Unavailable(POLLED, reason="NOT_EXPLICIT")

    def _failed(self, model: str, text: str, error: TidemillError) -> Internal:
        LOG.warning("cannot load a model by request", extra={"model": model, "error": error.message})
        return Internal(f"failed to load '{model}', {text}", reason="LOAD_FAILED")


def _number(version: str) -> int | None:
    if not version:
        return None
    if not (version.isascii() and version.isdigit() and len(version) <= 18 and int(version) > 0):
        raise Invalid(f"version must be a number above 0, not '{shown(version)}'", reason="INVALID_VERSION")
    return int(version)


def _reasons(failed: Mapping[Key, Status]) -> str:
    return "; ".join(
        f"version {number} is at {status.state.value} state: {status.reason}"
        for (_, number), status in sorted(failed.items())
    )
