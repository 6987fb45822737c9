"""What a front may answer by itself, as the first process tells it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tidemill.inference.configuration import Configuration, Isolation
from tidemill.inference.desired import Version
from tidemill.inference.fronts.spool import Spool
from tidemill.inference.loaded import Loaded
from tidemill.inference.repository import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A version of which fronts may hold copies.

    Args:
        key: another one for each time that the first process has loaded it.
        model, number, format: as in `Version`.
        directory: where its files lie, as the first process has loaded them.
        configuration: how it is run.
        traceparent: of the trace that made it: the first prediction may be one of a copy.
    """

    key: str
    model: str
    number: int
    format: str
    directory: Path
    configuration: Configuration
    traceparent: str = ""

    @property
    def version(self) -> Version:
        """What the loader needs to know."""
        return Version(
            model=self.model,
            number=self.number,
            format=self.format,
            artifact=self.key,
            configuration=self.configuration,
            directory=self.directory,
            traceparent=self.traceparent,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All copies, and for each model which version serves which alias; `default` is what an empty version means."""

    copies: tuple[Copy, ...] = ()
    aliases: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    default: Mapping[str, int] = field(default_factory=dict)


def picture(models: Mapping[str, Model], spool: Spool, default: Callable[[str], int | None]) -> Picture:
    """What fronts may answer of these models.

    Args:
        spool: holds the files of those that may be copied.
        default: tells which version of a model serves requests without one.
    """
    found = [status.loaded for model in models.values() for status in model.versions.values() if status.loaded]
    copies = [_copy(loaded, spool.path(loaded.key)) for loaded in found if loaded.copied]
    names = {copy.model for copy in copies}
    served = {name: number for name in names if (number := default(name)) is not None}
    return Picture(copies=tuple(copies), aliases={name: dict(models[name].aliases) for name in names}, default=served)


def may_be_copied(configuration: Configuration) -> bool:
    """Whether copies in several processes give the same answers as one would."""
    return (
        configuration.isolation is Isolation.THREAD
        and configuration.sequence is None
        and not configuration.decoupled
        and not configuration.cache
        and not configuration.instances
        and not configuration.gpus
    )


def _copy(loaded: Loaded, directory: Path) -> Copy:
    version = loaded.version
    return Copy(
        key=loaded.key,
        model=version.model,
        number=version.number,
        format=version.format,
        directory=directory,
        configuration=loaded.configuration,
        traceparent=version.traceparent,
    )
