"""The composition root of a worker process."""

import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tidemill import errors
from tidemill.clients.artifacts import ArtifactsClient
from tidemill.clients.parameters import ParametersAdmin, ParametersClient
from tidemill.clients.workers import WorkerClient
from tidemill.compression.choice import EXACT
from tidemill.config import set_default
from tidemill.rpc.loop import LoopThread
from tidemill.telemetry.setup import setup
from tidemill.training.samples import Array
from tidemill.training.strategies.base import Peers, Snapshot
from tidemill.training.worker.config import WorkerConfig
from tidemill.training.worker.convert import to_signature
from tidemill.training.worker.heartbeat import Heart, Progress
from tidemill.training.worker.names import KEPT
from tidemill.training.worker.network import Network, compute_threads
from tidemill.training.worker.remote import RemoteArtifacts, RemoteCoordinator, RemoteGroup
from tidemill.training.worker.stop import Stop
from tidemill.training.worker.task import Task
from tidemill.training.worker.work import Surroundings, Work

REPLICATED = "replicated"
CALL_SECONDS = 10.0
"""Longest time of one attempt of a call to the training service."""


class WorkerApp:
    """One worker and its connections. `run` in one thread, `interrupt` from another, `close` when `run` is over."""

    def __init__(self, config: WorkerConfig, stop: Stop) -> None:
        self._config = config
        self._stop = stop
        self._telemetry = setup("worker", traces=config.traces, instance=f"worker.{os.getpid()}")
        self._loop = LoopThread()
        self._asynchronous: list[Any] = []
        self._groups: list[tuple[int, ParametersClient]] = []
        """With the numbers of the groups."""
        client = self._made(
            WorkerClient,
            config.training_address,
            config.token,
            tracer=self._telemetry.tracer,
            timeout=CALL_SECONDS,
            retry_for=math.inf,  # the service will be back, or the launcher ends this process
        )
        self._coordinator = RemoteCoordinator(client, self._loop)
        self._progress = Progress()
        self._heart = Heart(self._coordinator, self._progress, stop, config.heartbeat_seconds, self._leave)

    def run(self) -> bool:
        """Get orders and carry them out; whether all went well.

        Raises:
            TidemillError: there are no orders to be had.
        """
        compute_threads(self._config.threads)
        try:
            task = self._coordinator.task()
        except (errors.Stale, errors.Unauthenticated) as error:
            self._stop.set(error.message)
            return True
        self._heart.start()
        with tempfile.TemporaryDirectory(
            prefix=f"rank{task.rank}-", dir=self._config.data, ignore_cleanup_errors=True
        ) as folder:
            return Work(self._surroundings(Path(folder)), self._progress, self._heart, self._stop).run(task)

    def interrupt(self) -> None:
        """Break off every call but those to the training service; the worker has been stopped."""
        self._leave(math.inf)
        for client in self._asynchronous[1:]:
            self._loop.run(client.close())

    def close(self) -> None:
        """Free everything and send the last spans."""
        self._stop.set("finished")
        self._heart.join()
        self._leave(math.inf)
        for client in self._asynchronous:
            self._loop.run(client.close())
        self._loop.close()
        self._telemetry.shutdown()

    def _leave(self, placement: float) -> None:
        """Break off what waits for groups before the one of this number."""
        for number, group in self._groups:
            if number < placement:
                group.close()

    def _surroundings(self, folder: Path) -> Surroundings:
        return Surroundings(
            coordinator=self._coordinator,
            artifacts=self._artifacts,
            server=self._group,
            peers=self._peers,
            signature=to_signature,
            export=_export,
            tracer=self._telemetry.tracer,
            folder=folder,
            threads=self._config.threads,
            max_dataset_bytes=self._config.max_dataset_bytes,
        )

    def _artifacts(self, task: Task) -> RemoteArtifacts:
        client = self._made(ArtifactsClient, task.artifacts, tracer=self._telemetry.tracer)
        return RemoteArtifacts(client, self._loop)

    def _group(self, task: Task) -> RemoteGroup:
        tracer = self._telemetry.tracer
        admin = self._made(ParametersAdmin, task.shards, tracer=tracer)
        client = ParametersClient(
            task.shards,
            task.group,
            tracer=tracer,
            patience=self._config.patience_seconds,
            codec=task.spec.codec.name or EXACT,
            codec_parameters=task.spec.codec.parameters,
            arbiter=self._coordinator.choose_copy if task.spec.durability.mode == REPLICATED else None,
            residuals=Path(self._config.data) / f"{KEPT}residual-{task.rank}",
        )
        self._groups.append((task.placement, client))
        return RemoteGroup(task, admin, client, self._loop)

    def _peers(self, task: Task, read: Callable[[str], Snapshot], progress: Progress) -> Peers:
        from tidemill.training.worker.peers import Seat, TorchPeers  # heavy, and not every strategy needs it

        seat = Seat(
            rank=task.rank,
            workers=task.spec.workers,
            host=self._config.host,
            patience=self._config.collective_seconds,
            placement=task.placement,
        )
        return TorchPeers(seat, self._coordinator, read, progress, self._stop)

    def _made(self, kind: Any, *arguments: Any, **options: Any) -> Any:
        """An asynchronous client, made in the loop that it lives in."""

        async def make() -> Any:
            return kind(*arguments, **options)

        client = self._loop.run(make())
        self._asynchronous.append(client)
        return client


def _export(network: Network, samples: Array, path: Path, threads: int) -> float:
    set_default("ORT_DISABLE_TELEMETRY", "1")  # read when ONNX Runtime is imported: it is to report to nobody
    from tidemill.training.worker.export import export  # heavy, and only rank 0 needs it, at the end

    return export(network, samples, path, threads)


def build(config: WorkerConfig, stop: Stop) -> WorkerApp:
    """The worker of this process."""
    return WorkerApp(config, stop)
