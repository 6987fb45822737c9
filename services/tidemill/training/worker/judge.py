"""What rank 0 does at the end of each epoch: measure, keep what is best, report, and hear whether to go on."""

import logging
import math
import tempfile
from pathlib import Path

from tidemill.errors import FailedPrecondition, Internal
from tidemill.telemetry import attributes
from tidemill.training.epochs import Epoch
from tidemill.training.strategies.base import Flat
from tidemill.training.worker import checkpoint
from tidemill.training.worker.evaluation import evaluate
from tidemill.training.worker.heartbeat import EVALUATING
from tidemill.training.worker.session import Session
from tidemill.training.worker.spans import span

LOG = logging.getLogger(__name__)


class EpochJudge:
    """Judges epochs for one job; knows those that workers before have finished."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._epochs = list(session.task.epochs)
        self.best_epoch = 0
        """The best epoch, when the training is over."""

    def finish(self, epoch: int, *, loss: float | None, seconds: float, samples: int) -> bool:
        """Evaluate, keep and report an epoch, unless that was done before; whether it was the last.

        Its samples are those that were used since the epoch before was finished, by all workers, wherever they are.
        Reporting is repeated for an epoch that a worker before has reported: the answer says whether to train on.

        Raises:
            FailedPrecondition: the validation loss is not finite.
        """
        if epoch > len(self._epochs):
            self._session.progress.phase = EVALUATING
            self._epochs.append(self._measure(epoch, loss, seconds, samples))
        decision = self._session.coordinator.report_epoch(self._epochs[epoch - 1])
        self.best_epoch = decision.best_epoch
        return decision.stop

    def best(self) -> Flat:
        """The parameters of the best epoch, from its checkpoint."""
        digest = self._epochs[self.best_epoch - 1].checkpoint if self.best_epoch else ""
        if not digest:
            raise Internal(f"epoch {self.best_epoch} is the best but has no checkpoint")
        with tempfile.TemporaryDirectory(dir=self._session.folder) as folder:
            return checkpoint.read(self._session.artifacts.fetch(digest, Path(folder)), self._session.network.tensors)

    def _measure(self, number: int, loss: float | None, seconds: float, samples: int) -> Epoch:
        given = {attributes.EPOCH: number}
        with span(self._session.tracer, attributes.SPAN_EVALUATE, dict(given)):
            validation = evaluate(self._session.network, self._session.prepared.validation, self._session.stop)
            if loss is None:  # this worker took over when the epoch's last step was done
                loss = evaluate(self._session.network, self._session.prepared.train, self._session.stop).loss
        if not math.isfinite(validation.loss):
            raise FailedPrecondition(
                f"the validation loss is {validation.loss} after epoch {number}", reason="LOSS_NOT_FINITE"
            )
        epoch = Epoch(
            epoch=number,
            train_loss=loss,
            validation=validation,
            samples=samples - sum(before.samples for before in self._epochs),
            seconds=seconds,
            checkpoint=self._keep(number) if self._improves(validation.loss) else "",
        )
        LOG.info(
            "epoch %d/%d: loss %.4f, validation loss %.4f, accuracy %.4f, %.1f s",
            number,
            self._session.task.spec.epochs,
            loss,
            validation.loss,
            validation.accuracy,
            seconds,
        )
        return epoch

    def _improves(self, loss: float) -> bool:
        """Whether an epoch may be the best: the training service asks for more, but never takes a worse one."""
        return all(loss < epoch.validation.loss for epoch in self._epochs)

    def _keep(self, number: int) -> str:
        description = {
            "job": self._session.task.job,
            "epoch": number,
            "model": self._session.task.spec.model.name,
            "parameters": dict(self._session.task.spec.model.parameters),
            "dataset": self._session.prepared.digest,
        }
        with (
            span(self._session.tracer, attributes.SPAN_UPLOAD, {attributes.EPOCH: number}),
            tempfile.TemporaryDirectory(dir=self._session.folder) as folder,
        ):
            files = checkpoint.write(
                Path(folder), self._session.network.flat, self._session.network.tensors, description
            )
            return self._session.artifacts.keep("checkpoint", files, {"epoch": str(number)}, self._session.task.job)
