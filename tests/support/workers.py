"""What surrounds a worker, in memory: a parameter server, an artifact store, a training service."""

import hashlib
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from opentelemetry.sdk.trace import TracerProvider

from tests.support.memorygroup import MemoryGroup, MemoryServer
from tidemill.errors import NotFound, Unavailable
from tidemill.training import epochs as rules
from tidemill.training.epochs import Epoch, Result
from tidemill.training.meeting import Meeting
from tidemill.training.samples import Array
from tidemill.training.spec import Component, Dataset, JobSpec, Split
from tidemill.training.strategies.base import Flat, ParameterServer, Peers, Snapshot
from tidemill.training.worker.heartbeat import Heart, Progress
from tidemill.training.worker.network import Network, Plan
from tidemill.training.worker.peers import Seat, TorchPeers
from tidemill.training.worker.session import Exporter
from tidemill.training.worker.stop import Stop
from tidemill.training.worker.task import Answer, Decision, Place, Task
from tidemill.training.worker.work import Surroundings, Work


def spec(**changes: Any) -> JobSpec:
    """A small job; every default is filled in."""
    small = JobSpec(
        model=Component(name="mlp", parameters={"hidden": [16]}),
        dataset=Dataset(builtin="iris"),
        split=Split(validation=0.1, test=0.1),
        optimizer=Component(name="adam", parameters={"learning_rate": 0.01}),
        strategy="parameter_server",
        workers=1,
        shards=1,
        epochs=3,
        batch_size=32,
        seed=7,
        max_restarts=3,
    )
    return replace(small, **changes)


class ThreadedNetwork(Network):
    """A network for workers that are threads: they share torch's random numbers, as processes do not."""

    _random = threading.Lock()

    def __init__(self, plan: Plan, seed: int) -> None:
        with self._random:
            super().__init__(plan, seed)

    def gradient(
        self, x: Array, y: Array, seed: int, ready: Callable[[int, int], None] | None = None
    ) -> tuple[Flat, float]:
        """As a worker alone would make it."""
        with self._random:
            return super().gradient(x, y, seed, ready)


class FolderArtifacts:
    """An artifact store in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self.kept: list[tuple[str, dict[str, str], str]] = []
        """(kind, labels, digest), in order."""

    def fetch(self, digest: str, folder: Path) -> dict[str, Path]:
        found = self._folder / digest
        if not found.is_dir():
            raise NotFound(f"artifacts/{digest} does not exist")
        return {path.name: Path(shutil.copy(path, folder)) for path in found.iterdir()}

    def keep(self, kind: str, files: Mapping[str, Path], labels: Mapping[str, str], reference: str) -> str:
        state = hashlib.sha256(kind.encode())
        for name, path in sorted(files.items()):
            state.update(name.encode() + path.read_bytes())
        digest = state.hexdigest()
        with self._lock:
            (self._folder / digest).mkdir(exist_ok=True)
            for name, path in files.items():
                shutil.copy(path, self._folder / digest / name)
            self.kept.append((kind, dict(labels), digest))
        return digest

    def files(self, digest: str) -> Path:
        """Where the files of an artifact lie."""
        return self._folder / digest


@dataclass
class MemoryJob:
    """The training service's view of one job."""

    spec: JobSpec
    epochs: tuple[Epoch, ...] = ()
    result: Result | None = None
    failures: list[tuple[int, str, bool, int]] = field(default_factory=list)
    """(rank, error, final, step)."""
    tracebacks: list[str] = field(default_factory=list)
    group_lost: bool = False
    phases: list[tuple[int, str]] = field(default_factory=list)
    stopped: bool = False
    meeting: Meeting = field(default_factory=Meeting)
    checkpoints: list[tuple[int, str]] = field(default_factory=list)
    """(step, digest)."""
    pausing: bool = False
    held: bool = False
    """Whether rank 0 has said that it goes no further."""

    @property
    def over(self) -> bool:
        """Whether there is no further epoch."""
        return bool(self.epochs) and rules.over(self.epochs, self.spec)

    def task(self, rank: int, attempt: int) -> Task:
        """The orders of one rank."""
        return Task(
            job="jobs/test",
            spec=self.spec,
            rank=rank,
            attempt=attempt,
            group="groups/test",
            shards=("memory",),
            traceparent="",
            artifacts="memory",
            epochs=self.epochs,
            checkpoint=self.checkpoints[-1][1] if self.checkpoints else "",
        )


@dataclass
class MemoryCoordinator:
    """The training service, as one rank sees it."""

    job: MemoryJob
    rank: int
    attempt: int = 0
    reachable: bool = True

    def beat(
        self, phase: str, *, step: int, steps_per_epoch: int, loss: float, samples: int, generation: int
    ) -> Answer:
        if not self.reachable:
            raise Unavailable("gone for a moment")
        self.job.phases.append((self.rank, phase))
        if generation:
            self.job.meeting.seen(self.rank, self.attempt, generation)
        stop = self.job.stopped or (self.rank > 0 and self.job.over)
        pause = self.job.pausing and (self.rank == 0 or not self.job.spec.consistency.waits)
        return Answer(stop=stop, generation=self.job.meeting.generation, pause=pause)

    def meet(self, *, lost: int, address: str) -> Place:
        number, place = self.job.meeting.arrive(self.rank, self.attempt, lost=lost, address=address)
        return Place(
            generation=number, address=place, checkpoint=self.job.checkpoints[-1][1] if self.job.checkpoints else ""
        )

    def choose_copy(self, shard: int, term: int, copy: int) -> tuple[int, int]:
        return 0, 0

    def task(self) -> Task:
        return self.job.task(self.rank, self.attempt)

    def report_checkpoint(self, checkpoint: str, step: int, *, paused: bool = False, moved: bool = False) -> None:
        assert self.rank == 0
        assert not moved
        self.job.checkpoints.append((step, checkpoint))
        self.job.held = self.job.stopped = paused

    def report_epoch(self, epoch: Epoch) -> Decision:
        assert self.rank == 0
        if epoch.epoch > len(self.job.epochs):
            self.job.epochs = rules.append(self.job.epochs, epoch, self.job.spec)
        best = rules.best(self.job.epochs)
        return Decision(stop=rules.over(self.job.epochs, self.job.spec), best_epoch=best.epoch if best else 0)

    def report_result(self, result: Result) -> None:
        assert self.rank == 0
        self.job.result = result

    def report_failure(
        self, error: str, *, final: bool, step: int, traceback: str = "", group_lost: bool = False
    ) -> None:
        self.job.failures.append((self.rank, error, final, step))
        self.job.tracebacks.append(traceback)
        self.job.group_lost = self.job.group_lost or group_lost


def no_export(network: Network, samples: Array, path: Path, threads: int) -> float:
    """An empty file instead of a model: exporting takes a second, and many tests are not about it."""
    path.touch()
    return 0.0


class Worker:
    """One rank at work in a thread of its own."""

    def __init__(
        self,
        job: MemoryJob,
        group: MemoryGroup,
        artifacts: FolderArtifacts,
        folder: Path,
        *,
        rank: int = 0,
        attempt: int = 0,
        hook: Callable[[str, int], None] = lambda event, step: None,
        provider: TracerProvider | None = None,
        export: Exporter = no_export,
        server: Callable[[Task], ParameterServer] | None = None,
    ) -> None:
        self.stop = Stop()
        self.progress = Progress()
        self.well: bool | None = None
        self.died: BaseException | None = None
        self._task = job.task(rank, attempt)
        coordinator = MemoryCoordinator(job, rank, attempt)
        self._heart = Heart(coordinator, self.progress, self.stop, 0.02)
        surroundings = Surroundings(
            coordinator=coordinator,
            artifacts=lambda task: artifacts,
            server=server or (lambda task: MemoryServer(group, task, hook)),
            peers=self._peers(coordinator),
            signature=lambda dtype, shape, labels: f'{{"labels": {len(labels)}}}',
            export=export,
            tracer=(provider or TracerProvider()).get_tracer("test"),
            folder=folder,
            threads=1,
            max_dataset_bytes=1 << 30,
        )
        self._work = Work(surroundings, self.progress, self._heart, self.stop)
        self._group = group
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _peers(self, coordinator: MemoryCoordinator) -> Callable[[Task, Callable[[str], Snapshot], Progress], Peers]:
        def found(task: Task, read: Callable[[str], Snapshot], progress: Progress) -> Peers:
            seat = Seat(rank=task.rank, workers=task.spec.workers, host="127.0.0.1", patience=60.0)
            return TorchPeers(seat, coordinator, read, progress, self.stop)

        return found

    def _run(self) -> None:
        self._heart.start()
        try:
            self.well = self._work.run(self._task)
        except BaseException as death:  # the end of a process, not an error that it could report
            self.died = death
        finally:
            self.stop.set("finished")

    def join(self) -> None:
        """Wait for its end; a thread that waits in the group when it is stopped is let go as a process would be."""
        self.stop.wait(60)
        self._thread.join(0.2)
        if self._thread.is_alive():
            self._group.end()
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._heart.join()
