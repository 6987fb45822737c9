"""One worker's whole work, from its orders to its last report."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from opentelemetry import context, trace
from opentelemetry.util.types import AttributeValue

from tidemill import plugins
from tidemill.errors import TidemillError
from tidemill.telemetry import attributes
from tidemill.telemetry.propagation import from_traceparent
from tidemill.training import strategies
from tidemill.training.strategies.base import (
    CONSTANT,
    GROUP_LOST,
    Extras,
    ParameterServer,
    Peers,
    Snapshot,
    Strategy,
    Team,
)
from tidemill.training.worker.delivery import Delivery
from tidemill.training.worker.failure import describe, is_final
from tidemill.training.worker.failure import trace as trace_of
from tidemill.training.worker.heartbeat import Heart, Progress
from tidemill.training.worker.judge import EpochJudge
from tidemill.training.worker.network import Network
from tidemill.training.worker.preparation import Prepared, prepare, read
from tidemill.training.worker.session import Exporter, Session
from tidemill.training.worker.sharding import derive
from tidemill.training.worker.snapshots import Snapshots
from tidemill.training.worker.spans import span
from tidemill.training.worker.stop import Stop, Stopped
from tidemill.training.worker.task import ArtifactStore, Coordinator, SignatureWriter, Task
from tidemill.training.worker.trainer import Trainer

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a worker is given to work with."""

    coordinator: Coordinator
    artifacts: Callable[[Task], ArtifactStore]
    server: Callable[[Task], ParameterServer]
    peers: Callable[[Task, Callable[[str], Snapshot], Progress], Peers]
    """(task, what reads a checkpoint, progress) -> the other workers."""
    signature: SignatureWriter
    export: Exporter
    tracer: trace.Tracer
    folder: Path
    """Where its files go; they are gone when it ends."""
    threads: int
    max_dataset_bytes: int


class Renewal:
    """A `trainer.Orders`.

    Args:
        session: whose orders they are.
        heart: hears that there are others.
        strategy: makes the one of the orders in the session.
    """

    def __init__(self, session: Session, heart: Heart, strategy: Callable[[], Strategy]) -> None:
        self._session = session
        self._heart = heart
        self._strategy = strategy

    def changed(self) -> bool:
        """Ask the training service."""
        self._session.stop.check()
        self._heart.beat()
        self._session.stop.check()
        return self._session.progress.placement > self._session.task.placement

    def renew(self) -> Strategy:
        """Get the orders."""
        self._session.task = self._session.coordinator.task()
        return self._strategy()


class Work:
    """Carries out a task; everything blocking in it ends soon after `stop` is set and the connections are closed."""

    def __init__(self, surroundings: Surroundings, progress: Progress, heart: Heart, stop: Stop) -> None:
        self._with = surroundings
        self._progress = progress
        self._heart = heart
        self._stop = stop

    def run(self, task: Task) -> bool:
        """Work; whether it ended well, that is finished or stopped. A failure has been reported then, if possible."""
        token = context.attach(from_traceparent(task.traceparent))
        try:
            self._traced(task)
        except Stopped:
            return True
        except Exception as error:  # noqa: BLE001 - reported to the training service
            # Connections that were closed under way fail in many ways; when the worker is to end, none of them matters.
            return self._stop.is_set or self._failed(error)
        finally:
            context.detach(token)
        return True

    def _traced(self, task: Task) -> None:
        given: dict[str, AttributeValue] = {
            attributes.JOB: task.job,
            attributes.RANK: task.rank,
            attributes.ATTEMPT: task.attempt,
        }
        with span(self._with.tracer, attributes.SPAN_WORKER, given):
            try:
                self._carry_out(task)
            except TidemillError:
                # A group that is deleted, a rank that another process has: the worker may not have heard of it yet.
                self._stop.check()
                self._heart.beat()
                self._stop.check()
                raise

    def _failed(self, error: Exception) -> bool:
        LOG.error("cannot go on: %s", "\n".join(filter(None, (describe(error), trace_of(error)))))
        try:
            self._with.coordinator.report_failure(
                describe(error),
                final=is_final(error),
                step=self._progress.step,
                traceback=trace_of(error),
                group_lost=isinstance(error, TidemillError) and error.reason == GROUP_LOST,
            )
        except TidemillError as unreported:
            LOG.error("this could not be reported: %s", unreported.message)
        return False

    def _carry_out(self, task: Task) -> None:
        LOG.info("rank %d of %s starts, attempt %d", task.rank, task.job, task.attempt)
        artifacts = self._with.artifacts(task)
        prepared = self._prepare(task, artifacts)
        self._stop.check()
        session = Session(
            task=task,
            prepared=prepared,
            network=Network(prepared.plan, derive(task.spec.seed, "first values")),
            coordinator=self._with.coordinator,
            artifacts=artifacts,
            signature=self._with.signature,
            export=self._with.export,
            progress=self._progress,
            stop=self._stop,
            tracer=self._with.tracer,
            folder=self._with.folder,
            threads=self._with.threads,
        )
        judge = EpochJudge(session) if task.rank == 0 else None
        snapshots = Snapshots(session)
        orders = Renewal(session, self._heart, lambda: self._strategy(session, snapshots))
        Trainer(session, self._strategy(session, snapshots), judge, snapshots, orders).run()
        assert judge is not None, "only rank 0 gets here"
        self._with.coordinator.report_result(Delivery(session).run(judge.best_epoch, judge.best()))
        LOG.info("rank %d of %s is done", task.rank, task.job)

    def _prepare(self, task: Task, artifacts: ArtifactStore) -> Prepared:
        with span(self._with.tracer, attributes.SPAN_DATASET) as current:
            digest = task.spec.dataset.artifact
            with tempfile.TemporaryDirectory(dir=self._with.folder) as folder:
                files = artifacts.fetch(digest, Path(folder)) if digest else {}
                prepared = prepare(task.spec, read(task.spec, files, self._with.max_dataset_bytes))
            current.set_attribute(attributes.SAMPLES, len(prepared.train))
        LOG.info(
            "data set %s…: %d samples for training, %d for validation, %d for testing, %d classes",
            prepared.digest[:12],
            len(prepared.train),
            len(prepared.validation),
            len(prepared.test),
            len(prepared.labels),
        )
        return prepared

    def _strategy(self, session: Session, snapshots: Snapshots) -> Strategy:
        task = session.task
        kind = plugins.load(strategies, task.spec.strategy, Strategy)
        return kind(
            Team(
                rank=task.rank,
                workers=task.spec.workers,
                tensors=session.network.tensors,
                optimizer=task.spec.optimizer.name,
                optimizer_options=task.spec.optimizer.parameters,
                extras=Extras(
                    schedule=task.spec.schedule.name or CONSTANT,
                    schedule_options=task.spec.schedule.parameters,
                    clip_norm=task.spec.clip_norm,
                    l1=task.spec.l1,
                ),
                rounds=task.spec.consistency.rounds,
                samples=session.schedule.counts,
                server=lambda: self._with.server(task),
                peers=lambda: self._with.peers(task, snapshots.read, self._progress),
                pause=self._stop.pause,
                drops=task.spec.stragglers.drops,
                rolls_back=task.spec.durability.mode == "checkpoint",
                checkpoint=partial(snapshots.read_group, task.checkpoint) if task.checkpoint else None,
            )
        )
