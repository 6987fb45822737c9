"""What has happened to a job, as events that keep their numbers for ever.

States and epochs are stored apart, each in order. A state knows how many epochs were finished before it, so the order
of all is known as well, and with it the number of each: that of the states and the epochs before it. As both only grow
at their ends, no event ever gets another number.
"""

from dataclasses import dataclass

from tidemill.errors import OutOfRange
from tidemill.training.epochs import Epoch
from tidemill.training.jobs import Job, State, begun


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that has happened to a job: a state it came into, or an epoch it has finished."""

    number: int
    """Among all that has happened to it, from 0."""
    time: float
    """Seconds since the epoch; 0 = not known."""
    state: State | None = None
    epoch: Epoch | None = None


def events(job: Job, first: int = 0) -> list[Event]:
    """What has happened to `job` so far.

    Args:
        job: as it was stored.
        first: number of the first event; 0 = the first one that is remembered.

    Raises:
        OutOfRange: reason EVENTS_FORGOTTEN, when this event is not remembered any more.
    """
    changes = job.changes or begun(job)
    done = changes[0].epochs if changes[0].number > 1 else 0
    found: list[Event] = []
    for change in changes:
        found += _epochs(job.epochs[done : change.epochs], change.number - 1)
        found.append(Event(number=change.number - 1 + change.epochs, time=change.time, state=change.state))
        done = change.epochs
    found += _epochs(job.epochs[done:], changes[-1].number)
    if 0 < first < found[0].number:
        raise OutOfRange(
            f"{job.name} does not remember its first {found[0].number} events",
            reason="EVENTS_FORGOTTEN",
            metadata={"job": job.name, "first": str(found[0].number)},
        )
    return found[max(0, first - found[0].number) :]


def _epochs(epochs: tuple[Epoch, ...], states: int) -> list[Event]:
    """Epochs that were finished after so many states."""
    return [Event(number=states + epoch.epoch - 1, time=epoch.reported, epoch=epoch) for epoch in epochs]
