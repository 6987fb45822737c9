"""The state of a training, kept as artifacts to go on from."""

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill.clients import snapshots
from tidemill.clients.groupdefinition import Definition
from tidemill.clients.groupstate import GroupState
from tidemill.errors import DataLoss
from tidemill.telemetry import attributes
from tidemill.training.strategies.base import Held, Snapshot
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
        self._kept = (-1, "")
        """Step and digest of the last one."""

    def keep(self, snapshot: Snapshot | Held, seen: Seen, *, paused: bool = False, moved: bool = False) -> None:
        """Upload a checkpoint and report it, unless that was done; there is nothing to keep of the start.

        Args:
            snapshot: the state.
            seen: by rank 0, of its epoch.
            paused: whether the worker goes no further.
            moved: whether it goes on by new orders.
        """
        step = snapshot.step if isinstance(snapshot, Snapshot) else snapshot.state.clocks[0]
        self.seen = seen
        if step == self._kept[0] and not paused and not moved:
            return
        if step == 0 and (isinstance(snapshot, Snapshot) or not snapshot.state.version):
            self._kept = (0, "")
        elif step != self._kept[0]:
            self._kept = (step, self._upload(snapshot, step, seen))
        self._session.coordinator.report_checkpoint(self._kept[1], self._kept[0], paused=paused, moved=moved)
        why = ": the job is paused" if paused else ": the job goes on with others" if moved else ""
        LOG.info("the state of the training at step %d is kept%s", step, why)

    def _upload(self, snapshot: Snapshot | Held, step: int, seen: Seen) -> str:
        session = self._session
        facts = {
            "job": session.task.job,
            "step": step,
            "loss": seen.loss,
            "samples": seen.samples,
            "model": session.task.spec.model.name,
            "optimizer": session.task.spec.optimizer.name,
            "dataset": session.prepared.digest,
        }
        with (
            span(session.tracer, attributes.SPAN_UPLOAD, {attributes.STEP: step}),
            tempfile.TemporaryDirectory(dir=session.folder) as name,
        ):
            folder = Path(name)
            if isinstance(snapshot, Held):
                files = snapshots.write(folder, snapshot.state, snapshot.definition, facts)
            else:
                files = checkpoint.write(folder, snapshot.flat, session.network.tensors, facts)
                files |= checkpoint.write_state(folder, snapshot.state)
            labels = {"job": session.task.job, "step": str(step)}
            return session.artifacts.keep("checkpoint", files, labels, session.task.job)

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
        return Snapshot(step=self._was_read(digest, facts), flat=flat, state=state)

    def read_group(self, digest: str, definition: Definition) -> GroupState:
        """The checkpoint of this digest, for a parameter group like this.

        Raises:
            DataLoss: it is damaged.
            FailedPrecondition: it is of another model, optimizer or rule.
        """
        with tempfile.TemporaryDirectory(dir=self._session.folder) as folder:
            files = self._session.artifacts.fetch(digest, Path(folder))
            found = snapshots.read(files, definition)
        self._was_read(digest, found.facts)
        return found.state

    def _was_read(self, digest: str, facts: Mapping[str, Any]) -> int:
        """Take note of a checkpoint's facts; its step."""
        try:
            self.seen = Seen(float(facts["loss"]), int(facts["samples"]))
            self._kept = (int(facts["step"]), digest)
        except (KeyError, TypeError, ValueError) as error:
            raise DataLoss("the checkpoint's description lacks numbers", reason="BAD_CHECKPOINT") from error
        LOG.info("goes on from the checkpoint at step %d", self._kept[0])
        return self._kept[0]
