"""Signs of life from a thread of its own, and what comes back with them."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tidemill import errors
from tidemill.training.worker.stop import Stop
from tidemill.training.worker.task import Coordinator

LOG = logging.getLogger(__name__)

STARTING = "starting"
TRAINING = "training"
EVALUATING = "evaluating"
EXPORTING = "exporting"


@dataclass(slots=True)
class Progress:
    """How far the worker is: written by the thread that trains, read by the one that sends it; for `latest`,
    `pausing`, `moving` and `placement` it is the reverse.

    Each field is replaced whole; that a sign of life may hold a step and the loss of the one before does no harm.
    """

    phase: str = STARTING
    step: int = 0
    steps_per_epoch: int = 0
    loss: float = 0.0
    samples: int = 0
    generation: int = 0
    """Meeting of the job's workers that this one is in; 0 = none."""
    latest: int = 0
    """The latest meeting, as far as is known."""
    pausing: bool = False
    """Whether the worker is to end after this step."""
    moving: bool = False
    """Whether rank 0 is to keep the state of the training where all stand still, to go on elsewhere."""
    placement: int = 0
    """Number of the latest group of the job, as far as is known."""


class Heart:
    """Beats until the worker stops, and stops the worker when the answer says so.

    While the training service is out of reach the worker goes on: its launcher ends it if need be.

    Args:
        coordinator: the training service.
        progress: what is told of the worker, and takes what comes back.
        stop: set when the worker is to end.
        interval: seconds between two beats.
        moved: called with the number of the job's group when that has become another one.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        progress: Progress,
        stop: Stop,
        interval: float,
        moved: Callable[[int], None] = lambda placement: None,
    ) -> None:
        self._moved = moved
        self._coordinator = coordinator
        self._progress = progress
        self._stop = stop
        self._interval = interval
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._reached = True

    def start(self) -> None:
        """Beat at once, and then every interval."""
        self._thread.start()

    def join(self) -> None:
        """Wait until the last beat is over; the worker has been stopped."""
        self._thread.join()

    def beat(self) -> None:
        """Give one sign of life."""
        progress = self._progress
        try:
            answer = self._coordinator.beat(
                progress.phase,
                step=progress.step,
                steps_per_epoch=progress.steps_per_epoch,
                loss=progress.loss,
                samples=progress.samples,
                generation=progress.generation,
            )
        except (errors.Stale, errors.Unauthenticated) as error:
            self._stop.set(error.message)
            return
        except errors.TidemillError as error:
            if self._reached:
                LOG.warning("the training service does not answer: %s", error.message)
            self._reached = False
            return
        self._reached = True
        progress.latest = max(progress.latest, answer.generation)
        progress.pausing, progress.moving = answer.pause, answer.move
        if answer.placement > progress.placement:
            progress.placement = answer.placement
            self._moved(answer.placement)
        if answer.stop:
            self._stop.set("the training service asks to stop")

    def _run(self) -> None:
        self.beat()
        while not self._stop.wait(self._interval):
            self.beat()
