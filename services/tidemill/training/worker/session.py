"""What the parts of a worker share once its samples and its network are there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from opentelemetry import trace

from tidemill.training.samples import Array
from tidemill.training.worker.heartbeat import Progress
from tidemill.training.worker.network import Network
from tidemill.training.worker.preparation import Prepared
from tidemill.training.worker.sharding import Schedule
from tidemill.training.worker.stop import Stop
from tidemill.training.worker.task import ArtifactStore, Coordinator, SignatureWriter, Task

Exporter = Callable[[Network, Array, Path, int], float]
"""(network, samples, file, threads) -> worst difference of the file's outputs from the network's."""


@dataclass(slots=True, kw_only=True)
class Session:
    """One rank at work on one job."""

    task: Task
    """Its orders; others when the job goes on with other workers or shards."""
    prepared: Prepared
    network: Network
    coordinator: Coordinator
    artifacts: ArtifactStore
    signature: SignatureWriter
    export: Exporter
    progress: Progress
    stop: Stop
    tracer: trace.Tracer
    folder: Path
    """Where its files go; they are gone when it ends."""
    threads: int

    @property
    def schedule(self) -> Schedule:
        """Which samples each rank takes in each step."""
        spec = self.task.spec
        return Schedule(
            samples=len(self.prepared.train), batch_size=spec.batch_size, workers=spec.workers, seed=spec.seed
        )
