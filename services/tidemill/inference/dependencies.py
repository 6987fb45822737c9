"""Models that are made of others, and when those allow them to be loaded."""

from collections.abc import Iterable
from enum import Enum

from tidemill.errors import Invalid
from tidemill.inference.desired import Version
from tidemill.inference.repository import State


class Waiting(Enum):
    """Whether a version has to wait for others."""

    YES = "yes"
    NO = "no"


def steps_of(version: Version) -> set[str]:
    """Names of the models that a version is made of."""
    return {step.model for step in version.configuration.steps} if version.configuration is not None else set()


def ready_to_load(version: Version, others: Iterable[tuple[Version, State]]) -> Waiting:
    """Whether `version` can be loaded now, as far as the models that it is made of go.

    Args:
        version: to be loaded.
        others: every version that is loaded or shall be, with what it is doing.

    Raises:
        Invalid: one of those models is not there, cannot be loaded, or is in the end made of this one.
    """
    needed = steps_of(version)
    if not needed:
        return Waiting.NO
    known = list(others)
    _check_cycle(version, [other for other, _ in known])
    waiting = Waiting.NO
    for model in sorted(needed):
        states = [state for other, state in known if other.model == model]
        if State.READY in states:
            continue
        if State.LOADING not in states:
            raise Invalid(
                f"ensemble '{version.model}' depends on '{model}' which has no loaded version",
                reason="STEP_UNAVAILABLE",
            )
        waiting = Waiting.YES
    return waiting


def _check_cycle(version: Version, others: Iterable[Version]) -> None:
    graph: dict[str, set[str]] = {}
    for other in others:
        graph.setdefault(other.model, set()).update(steps_of(other))
    seen: set[str] = set()
    waiting = list(steps_of(version))
    while waiting:
        model = waiting.pop()
        if model == version.model:
            raise Invalid(f"ensemble '{model}' is made of itself", reason="STEP_UNAVAILABLE")
        if model not in seen:
            seen.add(model)
            waiting += graph.get(model, ())
