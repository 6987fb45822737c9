"""The models that can be asked for now, and how a request's version finds one.

Requests read one immutable picture, which the reconciler replaces as a whole: a move of an alias is one assignment, and
no request sees half of it.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from tidemill.errors import Invalid, NotFound, Unavailable
from tidemill.inference.inputs import shown
from tidemill.inference.loaded import Loaded

_LONGEST_NUMBER = 18
STEPS_MISSING = "a model that it is made of is not ready, or does not fit any more"


class State(Enum):
    """What a version is doing; the names are those of the repository index of the Open Inference Protocol."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"
    UNLOADING = "UNLOADING"


@dataclass(frozen=True, slots=True)
class Status:
    """One version of a model.

    Args:
        state: what it is doing.
        reason: why it is not READY; "" when there is nothing to say.
        loaded: set exactly when it is READY.
    """

    state: State
    reason: str = ""
    loaded: Loaded | None = None

    @property
    def current(self) -> State:
        """The state now: what is made of other models, is UNAVAILABLE while one of them is."""
        if self.loaded is not None and not self.loaded.scheduler.available:
            return State.UNAVAILABLE
        return self.state


@dataclass(frozen=True, slots=True)
class Model:
    """One model.

    Args:
        versions: by number.
        aliases: the number that each alias serves: the version that it points at, or, until that one is READY, the
            version that it pointed at before.
        problem: why it has no versions, or why those that it has are not the newest; "" when there is nothing to say.
    """

    versions: Mapping[int, Status] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)
    problem: str = ""

    @property
    def ready(self) -> list[int]:
        """Numbers of the READY versions, rising."""
        return sorted(number for number, status in self.versions.items() if status.current is State.READY)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the index."""

    model: str
    version: str
    state: str
    reason: str


class Repository:
    """Every known model. Safe to use from any thread.

    Args:
        default_alias: what an empty version means, for a model that has such an alias.
    """

    def __init__(self, default_alias: str) -> None:
        self._default_alias = default_alias
        self._models: Mapping[str, Model] = {}
        self._index: Mapping[tuple[str, str], tuple[Model, Loaded]] = {}
        self.published: Callable[[], None] | None = None
        """Called after each change."""

    def publish(self, models: Mapping[str, Model]) -> None:
        """Replace the picture."""
        self._models = models
        self._index = dict(self._entries(models))
        if self.published is not None:
            self.published()

    @property
    def models(self) -> Mapping[str, Model]:
        """The picture."""
        return self._models

    def default(self, name: str) -> int | None:
        """Number of the version that serves requests for a model without one; None when there is none."""
        try:
            return self._number(name, self._models[name], "")
        except (KeyError, NotFound):
            return None

    def acquire(self, name: str, version: str) -> Loaded:
        """The loaded version that serves such a request, in use until its context ends.

        Args:
            name: of the model.
            version: a number, an alias, or "" for the default alias or else the highest READY version.

        Raises:
            NotFound: the model or the version is unknown.
            Invalid: the version is neither a number nor an alias of the model.
            Unavailable: the version is known, but not READY.
        """
        while True:
            _, loaded = self._find(name, version)
            if loaded.acquire():
                return loaded
            # Retired between the look and the use: what replaces it is in the picture by now.

    def ready(self, name: str, version: str) -> bool:
        """Whether such a request would be served now. What is not known, be it an alias, is not ready."""
        try:
            _, loaded = self._find(name, version)
        except (NotFound, Invalid, Unavailable):
            return False
        return loaded.ready

    def brief(self, name: str, version: str) -> bool:
        """Whether such a request would be answered in a moment, be it with an error."""
        try:
            _, loaded = self._find(name, version)
        except (NotFound, Invalid, Unavailable):
            return True
        return loaded.scheduler.brief

    def describe(self, name: str, version: str) -> tuple[Loaded, list[int]]:
        """The version that serves such a request, and all versions of the model that are READY. Raises as `acquire`."""
        model, loaded = self._find(name, version)
        return loaded, model.ready

    def serving(self, name: str, version: str) -> Loaded:
        """The version that serves such a request now; it may be retired at any time. Raises as `acquire`."""
        return self._find(name, version)[1]

    def known(self, name: str) -> bool:
        """Whether there is such a model, READY or not."""
        return name in self._models

    def loaded(self, name: str = "", version: str = "") -> list[Loaded]:
        """READY versions by model and number: of all models, of one, or the one that serves such a request.

        Raises:
            NotFound, Invalid, Unavailable: as `acquire`, when a model is named.
        """
        if version:
            return [self._find(name, version)[1]]
        models = self._models
        if name:
            if name not in models or not models[name].ready:
                self._find(name, version)
            models = {name: models[name]}
        return [
            status.loaded
            for _, model in sorted(models.items())
            for _, status in sorted(model.versions.items())
            if status.loaded is not None
        ]

    def index(self, only_ready: bool) -> Iterator[Entry]:
        """Models in order of name, each with its versions; one without any has a single line that names none."""
        for name, model in sorted(self._models.items()):
            if not model.versions and not only_ready:
                state = State.UNAVAILABLE.value if model.problem else ""
                yield Entry(name, "", state, model.problem)
            for number, status in sorted(model.versions.items()):
                current = status.current
                if current is State.READY or not only_ready:
                    reason = STEPS_MISSING if current is not status.state else status.reason or model.problem
                    yield Entry(name, str(number), current.value, reason)

    def _entries(self, models: Mapping[str, Model]) -> Iterator[tuple[tuple[str, str], tuple[Model, Loaded]]]:
        """What requests name, and what serves them, where that cannot change before the next picture."""
        for name, model in models.items():
            loaded = {n: one.loaded for n, one in model.versions.items() if one.state is State.READY and one.loaded}
            if any(one.scheduler.depends for one in loaded.values()):
                continue
            default = model.aliases.get(self._default_alias, max(loaded, default=0))
            asked = {"": default, **{str(number): number for number in loaded}, **model.aliases}
            yield from (((name, text), (model, loaded[number])) for text, number in asked.items() if number in loaded)

    def _find(self, name: str, version: str) -> tuple[Model, Loaded]:
        found = self._index.get((name, version))
        if found is not None:
            return found
        model = self._models.get(name)
        if model is None:
            raise _unknown(f"'{shown(name)}' is not found")
        number = self._number(name, model, version)
        status = model.versions.get(number)
        if status is None:
            raise _unknown(f"'{name}' version {number} is not found")
        if status.loaded is None or status.current is not State.READY:
            raise Unavailable(
                f"Request for unknown model: '{name}' version {number} is not at ready state",
                reason="VERSION_NOT_READY",
            )
        return model, status.loaded

    def _number(self, name: str, model: Model, version: str) -> int:
        alias = version or self._default_alias
        if alias in model.aliases:
            return model.aliases[alias]
        if not version:
            if not (ready := model.ready):
                raise _unknown(f"'{name}' has no available versions")
            return ready[-1]
        if version.isascii() and version.isdigit() and 0 < len(version) <= _LONGEST_NUMBER and int(version) > 0:
            return int(version)
        raise Invalid(
            f"failed to get model version from specified version string '{shown(version)}' (details: stol), "
            "version should be an integral value > 0",
            reason="INVALID_VERSION",
        )


def _unknown(text: str) -> NotFound:
    return NotFound(f"Request for unknown model: {text}", reason="MODEL_NOT_FOUND")
