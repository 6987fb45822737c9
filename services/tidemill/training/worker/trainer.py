"""The training loop of one worker."""

import logging
import math
import time
from typing import Protocol

from tidemill.errors import FailedPrecondition, TidemillError
from tidemill.telemetry import attributes
from tidemill.training.samples import Array
from tidemill.training.strategies.base import Lost, Strategy
from tidemill.training.worker.heartbeat import TRAINING
from tidemill.training.worker.session import Session
from tidemill.training.worker.sharding import derive
from tidemill.training.worker.snapshots import Seen, Snapshots
from tidemill.training.worker.spans import muted, span
from tidemill.training.worker.stop import Stopped

LOG = logging.getLogger(__name__)
_HELD = 0.1
"""Seconds between two looks at whether a worker is still to be held."""


class Judge(Protocol):
    """Rank 0's duties at the end of an epoch."""

    def finish(self, epoch: int, *, loss: float | None, seconds: float, samples: int) -> bool:
        """Evaluate, keep and report an epoch; whether it was the last.

        Args:
            epoch: its number, from 1.
            loss: mean training loss of what this worker has seen of it; None when it has seen nothing.
            seconds: time since this worker began it.
            samples: used by all workers so far, over all epochs.
        """


class Orders(Protocol):
    """A worker's orders, which change when its job goes on with other workers or shards."""

    def changed(self) -> bool:
        """Whether there are others by now; asks for a sign of that. Raises Stopped."""

    def renew(self) -> Strategy:
        """Take the others, and begin anew with them."""


class Moved(Exception):
    """The job goes on with other workers or shards."""


class Trainer:
    """Takes part in every step from where the strategy joins until the training is over.

    Only rank 0 knows when that is: it alone has a judge, and its epochs are those of the job. The others go on into the
    next epoch, and wait after the last; they end when they are told to, wherever they are then. In rounds nobody can
    finish the first step of an epoch that rank 0 has not begun.

    Args:
        session: what there is to train, and with what.
        strategy: this worker's.
        judge: rank 0's.
        snapshots: keeps the state of the training.
        orders: this worker's.
    """

    def __init__(
        self, session: Session, strategy: Strategy, judge: Judge | None, snapshots: Snapshots, orders: Orders
    ) -> None:
        self._session = session
        self._orders = orders
        self._task = session.task
        self._samples = session.prepared.train
        self._network = session.network
        self._progress = session.progress
        self._stop = session.stop
        self._tracer = session.tracer
        self._schedule = session.schedule
        self._strategy = strategy
        self._judge = judge
        self._snapshots = snapshots
        self._loss = 0.0
        self._seen = 0
        self._begun = time.monotonic()

    def run(self) -> None:
        """Train; return when the training is over, which only rank 0 ever does.

        Raises:
            Stopped: the worker is to end.
            FailedPrecondition: the loss is not finite.
        """
        self._progress.steps_per_epoch = self._schedule.steps_per_epoch
        if self._was_over():
            return
        while True:
            try:
                return self._train()
            except Lost as lost:
                LOG.warning("rank %d has lost the others and meets them again: %s", self._task.rank, lost)
                if self._orders.changed():
                    self._renew()
            except Moved:
                self._renew()
            except TidemillError:
                # The group that it waited for is not the job's any more, perhaps.
                if not self._orders.changed():
                    raise
                self._renew()

    def _renew(self) -> None:
        """Go on by new orders."""
        self._strategy.leave()
        self._strategy = self._orders.renew()
        self._task, self._schedule = self._session.task, self._session.schedule
        spec = self._task.spec
        LOG.info("rank %d goes on among %d workers, with %d shards", self._task.rank, spec.workers, spec.shards)

    def _was_over(self) -> bool:
        """Whether workers before have trained to the end, so that the others may be gone already."""
        done = len(self._task.epochs)
        if self._judge is None or not done or not self._judge.finish(done, loss=None, seconds=0.0, samples=0):
            return False
        self._progress.step = done * self._schedule.steps_per_epoch
        return True

    def _train(self) -> None:
        """Train from where the strategy joins; raises Lost as well."""
        steps = self._schedule.steps_per_epoch
        step, flat = self._strategy.join(self._network.first)
        LOG.info("rank %d begins at step %d of %d", self._task.rank, step, steps * self._task.spec.epochs)
        self._network.load(flat)
        self._loss, self._seen = self._snapshots.seen.loss, self._snapshots.seen.samples
        while True:
            self._progress.step = step
            if step and step % steps == 0:
                self._pause()
                if self._is_over(step // steps):
                    return
                self._loss, self._seen = 0.0, 0
                if self._is_due(step):
                    self._keep()
            step = self._epoch(step)

    def _is_over(self, epoch: int) -> bool:
        if self._judge is not None:
            loss = self._loss / self._seen if self._seen else None
            used = self._strategy.samples()
            if used is None:
                used = self._schedule.used(self._strategy.clocks() or self._together(epoch))
            return self._judge.finish(epoch, loss=loss, seconds=time.monotonic() - self._begun, samples=used)
        while epoch == self._task.spec.epochs:
            self._stop.pause(60.0)
        return False

    def _together(self, epoch: int) -> list[int]:
        """The steps of each worker at the end of an epoch, where all make them together."""
        return [epoch * self._schedule.steps_per_epoch] * self._task.spec.workers

    def _epoch(self, step: int) -> int:
        """Take part in the steps from `step` to the end of its epoch; the step to go on with, the first of the next.

        Others may have made steps without this worker: then it leaves them out, and may go on in a later epoch.
        """
        epoch = self._schedule.epoch(step)
        end = epoch * self._schedule.steps_per_epoch
        order = self._schedule.order(epoch)
        self._begun = time.monotonic()
        self._progress.phase = TRAINING
        given = {attributes.EPOCH: epoch, attributes.RANK: self._task.rank}
        with span(self._tracer, attributes.SPAN_EPOCH, dict(given)):
            with span(self._tracer, attributes.SPAN_STEP, {**given, attributes.STEP: step}):
                step = self._step(step, order)
            with muted():
                while step < end:
                    step = self._step(step, order)
        return step

    def _step(self, step: int, order: Array) -> int:
        """Take part in a step of an epoch with this order; the step to go on with."""
        self._stop.check()
        self._pause()
        part = self._schedule.part(order, step, self._task.rank)
        seed = derive(self._task.spec.seed, "step", self._task.rank, step)
        ready = self._strategy.begin(step, self._network.slope, len(part))
        try:
            gradient, loss = self._network.gradient(self._samples.x[part], self._samples.y[part], seed, ready)
            if not math.isfinite(loss):
                raise FailedPrecondition(f"loss is {loss} at step {step}", reason="LOSS_NOT_FINITE")
        except BaseException:
            self._strategy.abandon()
            raise
        after = self._strategy.exchange(step, gradient, len(part))
        self._network.load(after.flat)
        progress = self._progress
        progress.step = after.step
        if len(part):
            progress.loss = loss
        if after.counts:
            self._loss += loss * len(part)
            self._seen += len(part)
            progress.samples += len(part)
        if self._is_due(after.step) and after.step % self._schedule.steps_per_epoch:
            self._keep()
        return after.step

    def _is_due(self, step: int) -> bool:
        """Whether a checkpoint is to be kept when so many steps are done."""
        spec = self._task.spec
        if self._strategy.needs_shards:
            return spec.durability.interval_steps > 0 and step % spec.durability.interval_steps == 0
        at_end = step % self._schedule.steps_per_epoch == 0
        return at_end or (spec.checkpoint_steps > 0 and step % spec.checkpoint_steps == 0)

    def _pause(self) -> None:
        """If that is asked for, keep the state of the training, and end; or wait until rank 0 has. Raises Stopped."""
        while self._judge is None and self._progress.pausing:
            self._stop.pause(_HELD)
        if self._progress.pausing:
            self._keep(paused=True)
            raise Stopped("the job is paused")
        if self._judge is not None and self._progress.moving and self._strategy.stand(self._progress.step):
            self._progress.moving = False  # until it is told once more
            self._keep(moved=True)
            raise Moved

    def _keep(self, *, paused: bool = False, moved: bool = False) -> None:
        """Keep the state of the training, if that is for this worker to do."""
        if self._judge is not None:
            seen = Seen(self._loss, self._seen)
            self._snapshots.keep(self._strategy.snapshot(), seen, paused=paused, moved=moved)
