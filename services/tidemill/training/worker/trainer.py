"""The training loop of one worker."""

import logging
import math
import time
from typing import Protocol

from tidemill.errors import FailedPrecondition
from tidemill.telemetry import attributes
from tidemill.training.samples import Array
from tidemill.training.strategies.base import Flat, Strategy
from tidemill.training.worker.heartbeat import TRAINING
from tidemill.training.worker.session import Session
from tidemill.training.worker.sharding import derive
from tidemill.training.worker.spans import muted, span

LOG = logging.getLogger(__name__)


class Judge(Protocol):
    """Rank 0's duties at the end of an epoch."""

    def finish(self, epoch: int, *, loss: float | None, seconds: float) -> bool:
        """Evaluate, keep and report an epoch; whether it was the last.

        Args:
            epoch: its number, from 1.
            loss: mean training loss of what this worker has seen of it; None when it has seen nothing.
            seconds: time since this worker began it.
        """


class Trainer:
    """Takes part in every step from where the strategy joins until the training is over.

    Only rank 0 knows when that is: it alone has a judge. The others go on into the next epoch, whose first step is
    never finished when there is none, or wait after the last; they end when they are told to.
    """

    def __init__(self, session: Session, strategy: Strategy, judge: Judge | None) -> None:
        self._task = session.task
        self._train = session.prepared.train
        self._network = session.network
        self._progress = session.progress
        self._stop = session.stop
        self._tracer = session.tracer
        self._schedule = session.schedule
        self._strategy = strategy
        self._judge = judge
        self._loss = 0.0
        self._seen = 0
        self._begun = time.monotonic()

    def run(self) -> None:
        """Train; return when the training is over, which only rank 0 ever does.

        Raises:
            Stopped: the worker is to end.
            FailedPrecondition: the loss is not finite.
        """
        steps = self._schedule.steps_per_epoch
        self._progress.steps_per_epoch = steps
        step, flat = self._strategy.join(lambda: self._network.flat)
        LOG.info("rank %d begins at step %d of %d", self._task.rank, step, steps * self._task.spec.epochs)
        self._network.load(flat)
        while True:
            self._progress.step = step
            if step and step % steps == 0 and self._is_over(step // steps):
                return
            step = self._epoch(step)

    def _is_over(self, epoch: int) -> bool:
        if self._judge is not None:
            loss = self._loss / self._seen if self._seen else None
            return self._judge.finish(epoch, loss=loss, seconds=time.monotonic() - self._begun)
        while epoch == self._task.spec.epochs:
            self._stop.pause(60.0)
        return False

    def _epoch(self, step: int) -> int:
        """Take part in the steps from `step` to the end of its epoch; the first step of the next."""
        epoch = self._schedule.epoch(step)
        order = self._schedule.order(epoch)
        self._loss, self._seen, self._begun = 0.0, 0, time.monotonic()
        self._progress.phase = TRAINING
        given = {attributes.EPOCH: epoch, attributes.RANK: self._task.rank}
        with span(self._tracer, attributes.SPAN_EPOCH, dict(given)):
            with span(self._tracer, attributes.SPAN_STEP, {**given, attributes.STEP: step}):
                self._step(step, order)
            with muted():
                for following in range(step + 1, epoch * self._schedule.steps_per_epoch):
                    self._step(following, order)
        return epoch * self._schedule.steps_per_epoch

    def _step(self, step: int, order: Array) -> None:
        self._stop.check()
        part = self._schedule.part(order, step, self._task.rank)
        seed = derive(self._task.spec.seed, "step", self._task.rank, step)
        gradient, loss = self._network.gradient(self._train.x[part], self._train.y[part], seed)
        if not math.isfinite(loss):
            raise FailedPrecondition(f"loss is {loss} at step {step}", reason="LOSS_NOT_FINITE")
        flat: Flat = self._strategy.exchange(step, gradient, len(part))
        self._network.load(flat)
        self._loss += loss * len(part)
        self._seen += len(part)
        progress = self._progress
        progress.step, progress.samples = step + 1, progress.samples + len(part)
        if len(part):
            progress.loss = loss
