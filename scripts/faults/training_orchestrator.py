"""kill -9 of the training service at every edge of a job: none is stuck, no worker runs twice, nothing is lost."""

import argparse
import asyncio
import random
import secrets
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.ranks import Ranks
from tests.support.ports import free_ports
from tests.support.training import State, World, world
from tests.support.trainingprocess import Process, process
from tidemill import errors
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.training import TrainingClient

STUCK, TWICE, OTHER, LOST, COUNTED, LEFT = (
    "jobs that were stuck or failed",
    "ranks with two live processes at once",
    "results that differ from the undisturbed one",
    "log lines that are missing or there twice",
    "deaths of the service that were charged to workers",
    "worker processes that are left at the end",
)
EDGES = (
    "create", "pending>starting", "starting>starting", "launch", "starting>running", "running>running",
    "running>finishing", "finishing>finishing", "finishing>succeeded",
)  # fmt: skip
"""Changes of a job that are stored, and starts of processes, in the order in which a job meets them."""
PATIENCE = 120.0
"""Seconds after which a job counts as stuck."""
PROGRAM = ("tests.support.chaos.dying_training",)


EPOCHS = 3
SPEC = {
    "model": {"name": "mlp", "parameters": {"hidden": [16]}},
    "dataset": {"builtin": "iris"},
    "epochs": EPOCHS,
    "batch_size": 32,
    "workers": 2,
    "seed": 7,
    "register_as": "models/flowers",
}


class Run:
    """Jobs, one after the other, and a service that dies while they are at work."""

    def __init__(self, at: World, service: Process, plant: str) -> None:
        self._at = at
        self._service = service
        self._plant = plant
        self._died = at.folder / "died"
        self.edges: Counter[str] = Counter()
        """How often the service has died where."""
        self.jobs = 0
        self.stuck = 0
        self.weights: set[str] = set()
        self.broken_lines = 0
        self.restarts = 0
        self.found = 0

    async def job(self, client: TrainingClient, ahead: Sequence[str]) -> list[str]:
        """One job, through a death at each of these places that it meets; those that it did not meet."""
        request, left = secrets.token_hex(8), list(ahead)
        self.jobs += 1
        while True:
            where = left[0] if left else ""
            self._died.unlink(missing_ok=True)
            dies = {"TRAINING_DIES": where, "TRAINING_DIED": str(self._died)} if where else {}
            await self._service.begin(TRAINING_PLANTED=self._plant, **dies)
            ended = await self._live(client, request)
            if self._died.exists():
                self.edges[where.rpartition(" ")[0]] += 1
                del left[0]
                continue
            if ended is None:
                self.stuck += 1
            else:
                await self._judge(client, ended)
            await self._service.end(signal.SIGTERM)
            return left

    async def _live(self, client: TrainingClient, request: str) -> pb.Job | None:
        """One life of the service; the job when it has ended, None when the service has or nothing happens any more."""
        dead = asyncio.ensure_future(self._service.ended())
        work = asyncio.ensure_future(_follow(client, request))
        await asyncio.wait({dead, work}, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        ended = work.result() if work.done() and not dead.done() else None
        for task in (dead, work):
            task.cancel()
        await asyncio.gather(dead, work, return_exceptions=True)
        return ended

    async def _judge(self, client: TrainingClient, job: pb.Job) -> None:
        """Look at a job that has ended."""
        if job.state != State.STATE_SUCCEEDED:
            self.stuck += 1
            return
        self.restarts += job.restarts
        artifact = await self._at.artifacts.get_artifact(job.result.artifact)
        self.weights.update(file.sha256 for file in artifact.files if file.path == "model.safetensors")
        lines = [line async for line in client.logs(job.name)]
        self.broken_lines += [line.line for line in lines] != list(range(len(lines)))
        printed = Counter(line.text.split(":")[0] for line in lines if line.rank == 0)
        self.broken_lines += sum(printed[f"epoch {number}/{EPOCHS}"] != 1 for number in range(1, EPOCHS + 1))
        self.found += sum(line.text.endswith(": found again") for line in lines)


async def _follow(client: TrainingClient, request: str) -> pb.Job:
    """Ask for a job until it is there, and follow it to its end."""
    while True:
        try:
            made = await client.create_job(SPEC, request_id=request)
            return await client.wait_job(made.name)
        except (errors.Unavailable, errors.Cancelled, errors.DeadlineExceeded):
            await asyncio.sleep(0.05)


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Kill at one edge after the other; each job goes on through as many deaths as there are edges ahead of it."""
    report = Report()
    places = [f"{when} {edge} 1" for edge in EDGES for when in ("before", "after")]
    random.Random(options.seed).shuffle(places)
    async with world(work) as at:
        settings = {"port": free_ports(1)[0], "worker_command": (), "worker_grace_seconds": 5.0}
        async with (
            process(at, PROGRAM, **settings) as service,
            TrainingClient(f"127.0.0.1:{settings['port']}") as client,
        ):
            with Ranks(work / "training") as ranks:
                alone = Run(at, service, options.plant)
                if not options.plant:  # whose results are not compared
                    await alone.job(client, [])
                deadly = Run(at, service, options.plant)
                ahead = [places[number % len(places)] for number in range(options.kills)]
                while ahead and not deadly.stuck:
                    ahead = await deadly.job(client, ahead)
            left = len(ranks.now())
    report.none(STUCK, alone.stuck + deadly.stuck)
    report.none(TWICE, len(ranks.twice))
    report.none(OTHER, 0 if options.plant else len(deadly.weights - alone.weights))
    report.none(LOST, deadly.broken_lines)
    report.none(COUNTED, deadly.restarts)
    report.none(LEFT, left)
    report.figures = {
        "kills": sum(deadly.edges.values()),
        "edges": dict(sorted(deadly.edges.items())),
        "jobs": deadly.jobs,
        "workers found again": deadly.found,
        "looks at processes": ranks.looks,
    }
    return report


EXPERIMENT = Experiment(
    title=__doc__ or "", run=run, plants={"forgets-workers": TWICE}, arguments={"kills": 50, "seed": 1}
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
