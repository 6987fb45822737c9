"""Plug-ins found by file name: a new one is one new file with one subclass, registered nowhere."""

import importlib
import inspect
import pkgutil
from types import ModuleType
from typing import TypeVar

from tidemill.errors import Invalid

T = TypeVar("T")


def names(package: ModuleType) -> list[str]:
    """Names of the plug-ins in `package`, sorted, without importing any.

    Every module counts except `base` and those that start with an underscore.
    """
    found = (module.name for module in pkgutil.iter_modules(package.__path__))
    return sorted(name for name in found if name != "base" and not name.startswith("_"))


def load(package: ModuleType, name: str, base: type[T]) -> type[T]:
    """The one subclass of `base` that the file `name` of `package` defines.

    Raises:
        Invalid: with reason UNKNOWN_<KIND> when there is no such file; the message lists those there are. With reason
            PACKAGE_MISSING when it needs a package that is not installed.
    """
    known = names(package)
    kind = package.__name__.rsplit(".", 1)[-1].rstrip("s")
    if name not in known:
        shown = name if len(name) <= 40 else name[:40] + "…"
        raise Invalid(
            f"unknown {kind} {shown!r}; known are {', '.join(known)}",
            reason=f"UNKNOWN_{kind.upper()}",
            metadata={kind: shown, "known": ",".join(known)},
            violations={kind: f"must be one of {', '.join(known)}"},
        )
    try:
        module = importlib.import_module(f"{package.__name__}.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith((package.__name__, "tidemill")):
            raise
        raise Invalid(
            f"the {kind} {name!r} needs the package {error.name!r}, which is not installed here",
            reason="PACKAGE_MISSING",
            metadata={kind: name, "package": error.name},
        ) from error
    found = [
        member
        for member in vars(module).values()
        if inspect.isclass(member)
        and issubclass(member, base)
        and member.__module__ == module.__name__
        and not inspect.isabstract(member)
    ]
    assert len(found) == 1, f"{module.__name__} must define exactly one {base.__name__}, not {len(found)}"
    return found[0]
