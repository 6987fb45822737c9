"""Real worker processes on real shards and a real artifact store, with a training service that a test directs."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.support.artifacts import config as artifact_settings
from tests.support.serve import serving
from tests.support.shards import shards
from tests.support.wait import until
from tests.support.workers import MemoryCoordinator, MemoryJob
from tidemill.api.training.v1 import training_pb2, training_pb2_grpc
from tidemill.artifacts.app import build as build_artifacts
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.errors import Stale
from tidemill.rpc.app import App, observer, telemetry
from tidemill.rpc.config import ServerConfig
from tidemill.rpc.server import AioServer, Service
from tidemill.training.epochs import Epoch, Result
from tidemill.training.jobs import Copy
from tidemill.training.meter import Beat
from tidemill.training.spec import JobSpec
from tidemill.training.tokens import Tokens, digest, fresh
from tidemill.training.worker.task import Answer, Decision, Place, Task
from tidemill.training.workers_servicer import WorkerServicer
from tidemill.training.workshop import Seat


class WorkerProcess:
    """One worker process, its standard input held as its launcher would."""

    def __init__(self, folder: Path, name: str, environment: Mapping[str, str]) -> None:
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tidemill.training.worker"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **{key: value for key, value in os.environ.items() if not key.startswith("TIDEMILL_")},
                    "TIDEMILL_WORKER_DATA": str(folder),
                    "TIDEMILL_WORKER_HEARTBEAT_SECONDS": "0.05",
                    **environment,
                },
            )

    @property
    def log(self) -> str:
        """What it has printed."""
        return self._log.read_text()

    def terminate(self) -> None:
        """Send SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """End it without any warning."""
        self._process.kill()

    def release(self) -> None:
        """Close its standard input, as the end of its launcher would."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    async def ended(self, timeout: float = 90.0) -> int:
        """Its exit status, once it has ended."""
        await until(lambda: self._process.poll() is not None, timeout, f"a worker ends; it printed: {self.log[-2000:]}")
        return int(self._process.returncode)

    def clean(self) -> None:
        """End it if it has not."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()


@dataclass
class Office:
    """A training service with one job, whose workers a test starts and ends by hand; an `Employer`."""

    job: MemoryJob
    folder: Path
    address: str
    group: str
    shards: tuple[str, ...]
    artifacts: ArtifactsClient
    artifacts_address: str
    tokens: Tokens[Seat]
    traceparent: str = ""
    attempts: dict[int, int] = field(default_factory=dict)
    beats: dict[int, Beat] = field(default_factory=dict)
    """The last sign of life of each rank's present process."""

    def start(self, rank: int, **environment: str) -> WorkerProcess:
        """A process for a rank, in the place of the one before."""
        attempt = self.attempts[rank] = self.attempts.get(rank, -1) + 1
        self.beats.pop(rank, None)
        token = fresh()
        self.tokens.know(digest(token), Seat(self, rank, attempt))
        return WorkerProcess(
            self.folder,
            f"rank{rank}.{attempt}",
            {
                "TIDEMILL_TRAINING_ADDRESS": self.address,
                "TIDEMILL_WORKER_TOKEN": token,
                **environment,
            },
        )

    def _member(self, rank: int, attempt: int) -> MemoryCoordinator:
        if self.attempts[rank] != attempt:
            raise Stale("another process has this rank now")
        return MemoryCoordinator(self.job, rank, attempt)

    def task(self, rank: int, attempt: int) -> Task:
        self._member(rank, attempt)
        return replace(
            self.job.task(rank, attempt),
            group=self.group,
            shards=self.shards,
            artifacts=self.artifacts_address,
            traceparent=self.traceparent,
        )

    async def beat(self, rank: int, attempt: int, beat: Beat) -> Answer:
        answer = self._member(rank, attempt).beat(
            beat.phase, step=beat.step, steps_per_epoch=0, loss=0, samples=0, generation=beat.generation
        )
        self.beats[rank] = beat
        return answer

    async def meet(self, rank: int, attempt: int, *, lost: int, address: str) -> Place:
        return self._member(rank, attempt).meet(lost=lost, address=address)

    async def choose_copy(self, rank: int, attempt: int, wanted: Copy) -> Copy:
        return Copy(shard=wanted.shard)

    async def report_checkpoint(
        self, rank: int, attempt: int, checkpoint: str, step: int, *, paused: bool = False, moved: bool = False
    ) -> None:
        self._member(rank, attempt).report_checkpoint(checkpoint, step, paused=paused, moved=moved)

    async def report_epoch(self, rank: int, attempt: int, epoch: Epoch) -> Decision:
        return self._member(rank, attempt).report_epoch(epoch)

    async def report_result(self, rank: int, attempt: int, result: Result) -> None:
        self._member(rank, attempt).report_result(result)

    def report_failure(
        self,
        rank: int,
        attempt: int,
        error: str,
        *,
        final: bool,
        step: int,
        traceback: str = "",
        group_lost: bool = False,
    ) -> None:
        self._member(rank, attempt).report_failure(
            error, final=final, step=step, traceback=traceback, group_lost=group_lost
        )

    async def reaches(self, rank: int, step: int) -> None:
        """Wait until a rank's process says that it has done so many steps."""
        await until(lambda: rank in self.beats and self.beats[rank].step >= step, 60.0, f"rank {rank} at step {step}")


@asynccontextmanager
async def office(folder: Path, spec: JobSpec) -> AsyncIterator[Office]:
    """Everything that the workers of one job need, with as many shards as it asks for."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(shards(spec.shards))
        artifacts = await stack.enter_async_context(serving(build_artifacts(artifact_settings(folder / "artifacts"))))
        client = await stack.enter_async_context(ArtifactsClient(artifacts))
        tokens: Tokens[Seat] = Tokens()
        config = ServerConfig()
        signals = telemetry("training", config)
        service = Service.of(
            training_pb2_grpc.add_WorkerServiceServicer_to_server,
            WorkerServicer(tokens),
            training_pb2.DESCRIPTOR.services_by_name["WorkerService"],
        )
        server = AioServer([service], observer(config, signals))
        address = await stack.enter_async_context(serving(App("training", config, signals, server)))
        yield Office(
            job=MemoryJob(spec),
            folder=folder,
            address=address,
            group="groups/test",
            shards=tuple(cluster.addresses),
            artifacts=client,
            artifacts_address=artifacts,
            tokens=tokens,
        )
