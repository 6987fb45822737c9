"""The state of a training that its workers hold themselves, kept as artifacts to go on from."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tidemill.errors import DataLoss
from tidemill.telemetry import attributes
from tidemill.training.strategies.base import Snapshot
from tidemill.training.worker import checkpoint
from tidemill.training.worker.session import Session
from tidemill.training.worker.spans import span

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """What rank 0 has seen of an epoch: the sum of the losses of its samples, and their number."""

    loss: float = 0.0
    samples: int = 0


class Snapshots:
    """Keeps and reads the checkpoints of one job."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.seen = Seen()
        """What rank 0 had seen of its epoch when the checkpoint was kept that was read last."""
        self._kept = -1

    def keep(self, snapshot: Snapshot, seen: Seen) -> None:
        """Upload a checkpoint and report it, unless that was done."""
        if snapshot.step == self._kept:
            return
        session = self._session
        description = {
            "job": session.task.job,
            "step": snapshot.step,
            "loss": seen.loss,
            "samples": seen.samples,
            "model": session.task.spec.model.name,
            "optimizer": session.task.spec.optimizer.name,
            "dataset": session.prepared.digest,
        }
        with (
            span(session.tracer, attributes.SPAN_UPLOAD, {attributes.STEP: snapshot.step}),
            tempfile.TemporaryDirectory(dir=session.folder) as name,
        ):
            folder = Path(name)
            files = checkpoint.write(folder, snapshot.flat, session.network.tensors, description)
            files |= checkpoint.write_state(folder, snapshot.state)
            labels = {"job": session.task.job, "step": str(snapshot.step)}
            digest = session.artifacts.keep("checkpoint", files, labels, session.task.job)
        session.coordinator.report_checkpoint(digest, snapshot.step)
        self._kept = snapshot.step

    def read(self, digest: str) -> Snapshot:
        """The checkpoint of this digest.

        Raises:
            DataLoss: it is damaged, or of another model.
        """
        with tempfile.TemporaryDirectory(dir=self._session.folder) as folder:
            files = self._session.artifacts.fetch(digest, Path(folder))
            flat = checkpoint.read(files, self._session.network.tensors)
            state = checkpoint.read_state(files)
            facts = checkpoint.read_description(files)
        try:
            self.seen = Seen(float(facts["loss"]), int(facts["samples"]))
            self._kept = int(facts["step"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataLoss("the checkpoint's description lacks numbers", reason="BAD_CHECKPOINT") from error
        LOG.info("goes on from the checkpoint at step %d", self._kept)
        return Snapshot(step=self._kept, flat=flat, state=state)
