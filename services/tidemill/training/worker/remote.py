"""The services that a worker calls, as its parts see them: synchronous, in plain values."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tidemill.clients import snapshots
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.groupdefinition import Definition
from tidemill.clients.groupstate import GroupState
from tidemill.clients.parameters import LATEST, Outgoing, ParametersAdmin, ParametersClient
from tidemill.clients.workers import WorkerClient
from tidemill.rpc.loop import LoopThread
from tidemill.training import convert
from tidemill.training.epochs import Epoch, Result
from tidemill.training.strategies.base import CONSTANT, Flat, Held
from tidemill.training.worker.task import Answer, Decision, Place, Task

LOG = logging.getLogger(__name__)


class RemoteCoordinator:
    """The training service; a `task.Coordinator`."""

    def __init__(self, client: WorkerClient, loop: LoopThread) -> None:
        self._client = client
        self._loop = loop

    def task(self) -> Task:
        """The worker's orders."""
        return convert.from_task(self._loop.run(self._client.get_task()))

    def beat(
        self, phase: str, *, step: int, steps_per_epoch: int, loss: float, samples: int, generation: int
    ) -> Answer:
        """Give a sign of life."""
        call = self._client.heartbeat(
            phase, step=step, steps_per_epoch=steps_per_epoch, loss=loss, samples=samples, generation=generation
        )
        response = self._loop.run(call)
        return Answer(
            stop=response.stop,
            generation=response.generation,
            pause=response.pause,
            move=response.move,
            placement=response.placement,
        )

    def meet(self, *, lost: int, address: str) -> Place:
        """Ask where to meet the others."""
        response = self._loop.run(self._client.meet(lost=lost, address=address))
        return Place(generation=response.generation, address=response.address, checkpoint=response.checkpoint)

    def choose_copy(self, shard: int, term: int, copy: int) -> tuple[int, int]:
        """Ask which copy of a shard counts."""
        return self._loop.run(self._client.choose_copy(shard, term, copy))

    def report_checkpoint(self, checkpoint: str, step: int, *, paused: bool = False, moved: bool = False) -> None:
        """Hand in from where workers go on after a restart."""
        self._loop.run(self._client.report_checkpoint(checkpoint, step, paused=paused, moved=moved))

    def report_epoch(self, epoch: Epoch) -> Decision:
        """Hand in a finished epoch."""
        response = self._loop.run(self._client.report_epoch(convert.to_epoch(epoch)))
        return Decision(stop=response.stop, best_epoch=response.best_epoch)

    def report_result(self, result: Result) -> None:
        """Hand in the result."""
        self._loop.run(self._client.report_result(convert.to_result(result)))

    def report_failure(
        self, error: str, *, final: bool, step: int, traceback: str = "", group_lost: bool = False
    ) -> None:
        """Say why the worker cannot go on."""
        self._loop.run(
            self._client.report_failure(error, final=final, step=step, traceback=traceback, group_lost=group_lost)
        )


class RemoteArtifacts:
    """The artifact service; a `task.ArtifactStore`."""

    def __init__(self, client: ArtifactsClient, loop: LoopThread) -> None:
        self._client = client
        self._loop = loop

    def fetch(self, digest: str, folder: Path) -> Mapping[str, Path]:
        """The files of an artifact, verified, by name."""
        return self._loop.run(self._client.download_artifact(digest, folder))

    def keep(self, kind: str, files: Mapping[str, Path], labels: Mapping[str, str], reference: str) -> str:
        """Store files as an artifact; its digest."""
        made = self._loop.run(self._client.create_artifact(kind, files, labels=labels, reference=reference))
        return str(made.digest)


class RemoteGroup:
    """One worker's end of a parameter group; a `strategies.base.ParameterServer`.

    What `pull` returns is overwritten by the next `pull`.
    """

    def __init__(self, task: Task, admin: ParametersAdmin, client: ParametersClient, loop: LoopThread) -> None:
        self._task = task
        self._admin = admin
        self._client = client
        self._loop = loop
        self._flat: Flat | None = None
        self._outgoing: Outgoing | None = None

    def create(
        self, tensors: Sequence[tuple[str, tuple[int, ...]]], optimizer: str, options: Mapping[str, Any]
    ) -> None:
        """Create the group on all shards."""
        spec = self._task.spec
        way, kept = spec.consistency, spec.durability.mode
        self._loop.run(
            self._admin.create_group(
                self._task.group,
                tensors,
                optimizer=optimizer,
                parameters=options,
                workers=spec.workers,
                mode=way.mode or "bsp",
                staleness=way.staleness,
                arrival_order=way.arrival_order,
                clip_norm=spec.clip_norm,
                l1=spec.l1,
                schedule=spec.schedule.name or CONSTANT,
                schedule_parameters=spec.schedule.parameters,
                durability="none" if kept in ("", "checkpoint") else kept,  # workers keep checkpoints, not shards
                fsync=spec.durability.fsync,
                stragglers=spec.stragglers.policy or "wait",
                most_dropped=spec.stragglers.most,
                after_seconds=spec.stragglers.after_seconds,
            )
        )

    def load(self, values: Flat) -> None:
        """Set the first values."""
        self._client.load(values)

    def begin(self, gradient: Flat, *, step: int, samples: int) -> Callable[[int, int], None] | None:
        """Begin a push, when parts of it may leave early."""
        self.abandon()
        if not samples or not self._client.leaves_early(self._task.rank, self._task.attempt):
            return None
        return self._begun(gradient, step, samples).ready

    def _begun(self, gradient: Flat, step: int, samples: int) -> Outgoing:
        rank, attempt = self._task.rank, self._task.attempt
        self._outgoing = self._client.begin_push(gradient, worker=rank, step=step, attempt=attempt, samples=samples)
        return self._outgoing

    def abandon(self) -> None:
        """Cancel the push that was begun."""
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            outgoing.cancel()

    def push(self, gradient: Flat, *, step: int, samples: int) -> bool:
        """Hand in this worker's mean gradient; whether it counts. The next pull waits for its answers."""
        client, task = self._client, self._task
        if self._outgoing is not None or (samples and client.overlaps(task.rank, task.attempt)):
            (self._outgoing or self._begun(gradient, step, samples)).commit()
            return True
        before = client.choice
        outcome = client.push(gradient, worker=task.rank, step=step, attempt=task.attempt, samples=samples)
        if client.choice is not before and client.choice is not None:
            LOG.info("rank %d chooses %s: %s", task.rank, client.choice.codec, client.choice.reason)
        return not outcome.dropped

    def pull(self, version: int) -> Flat:
        """The parameters at a version, or at a clock of this worker."""
        return self._pulled(version)[1]

    def latest(self) -> tuple[int, Flat]:
        """The latest version."""
        return self._pulled(LATEST)

    def samples(self) -> int:
        """Samples that were used so far."""
        return self._client.samples()

    def _pulled(self, version: int) -> tuple[int, Flat]:
        rank, attempt = self._task.rank, self._task.attempt
        if self._flat is None:
            self._flat = np.empty(self._client.layout.elements, np.float32)
        outgoing, self._outgoing = self._outgoing, None
        if outgoing is not None:
            return self._client.exchange(outgoing, version, self._flat, worker=rank, attempt=attempt)
        return self._client.pull(version, self._flat, worker=rank, attempt=attempt, view=True)

    def versions(self) -> Sequence[int]:
        """The version of each shard."""
        return self._client.versions()

    def clocks(self) -> Sequence[Sequence[int]]:
        """For each shard the step that each worker's next push is for."""
        return self._client.all_clocks()

    def hold(self) -> int:
        """Let the workers come to a stand; the step that none but this one begins."""
        return self._client.hold()

    def close(self) -> None:
        """Let calls that wait end."""
        self.abandon()
        self._client.close()

    def snapshot(self) -> Held:
        """All there is to know of the group."""
        return Held(state=self._client.snapshot(), definition=self._definition())

    def restore(self, read: Callable[[Definition], GroupState]) -> None:
        """Let the new group go on from what `read` gives."""
        self._client.restore(read(self._definition()))

    def _definition(self) -> Definition:
        parts = self._loop.run(self._admin.get_group(self._task.group))
        return snapshots.definition_of(parts[0])

    def anew(self, step: int) -> None:
        """Go on with what the codec had not sent before a step, if that is still here."""
        if self._client.keeps_residual and not self._client.residuals.resume(step):
            LOG.info(
                "rank %d joins at step %d: what was not sent before, by %s, is not here any more, and is dropped",
                self._task.rank,
                step,
                self._client.codec,
            )
