"""Kill or stop workers at random moments: no job is stuck or comes out different, and who was replaced is not heard."""

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.ranks import Ranks
from tests.support.chaos.zombies import Fence, Unreachable
from tests.support.training import State, World, lives, world
from tests.support.wait import until
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.clients.training import TrainingClient

STUCK, OTHER, SAMPLES, TAKEN, UNHEARD, LEFT = (
    "jobs that were stuck or failed",
    "results that differ from the undisturbed one",
    "groups whose parameters were made of other than epochs x samples",
    "pushes of replaced workers that a shard did not refuse",
    "replaced workers that did not end by themselves",
    "worker processes that are left at the end",
)
SHARDS, WORKERS = 2, 2
FAULTS = 6
"""Most of them in one job."""
SILENCE = 3.0
PATIENCE = {"": 150.0, "no-lease": 12.0}
"""Seconds after which a job counts as stuck."""
LIFE = 15.0
"""Seconds in which a replaced worker must end by itself, once it goes on."""
SPEC = {
    "model": {"name": "mlp", "parameters": {"hidden": [256, 256]}},
    "dataset": {"builtin": "iris"},
    "batch_size": 8,
    "workers": WORKERS,
    "shards": SHARDS,
    "seed": 7,
    "max_restarts": 100,
    "register_as": "models/flowers",
}
OVER = (State.STATE_SUCCEEDED, State.STATE_FAILED, State.STATE_CANCELLED)


class Run:
    """Jobs, one after the other, whose workers are killed and stopped.

    Args:
        at: where they run.
        client: of the service.
        fence: looks at the shards.
        unreachable: workers that nobody can end.
        chance: chooses moments and victims.
        options: the experiment's.
    """

    def __init__(
        self,
        at: World,
        client: TrainingClient,
        fence: Fence,
        unreachable: Unreachable,
        chance: random.Random,
        options: argparse.Namespace,
    ) -> None:
        self._at = at
        self._client = client
        self._fence = fence
        self._unreachable = unreachable
        self._chance = chance
        self._epochs = options.epochs
        self._plant = options.plant
        self._patience = PATIENCE.get(options.plant, PATIENCE[""])
        self._copies = 1
        self._how = [signal.SIGSTOP, signal.SIGKILL]
        self.jobs = 0
        self.stuck = 0
        self.weights: set[str] = set()
        self.other_samples = 0
        self.unheard = 0
        self.replaced: Counter[str] = Counter()
        self.late = 0
        """Victims without a successor that pushes: all steps were done."""
        self.phases: Counter[str] = Counter()
        self.seconds: dict[str, list[float]] = {"SIGKILL": [], "SIGSTOP": []}
        """From a fault to the successor's push on all shards."""

    async def job(self, faults: int) -> None:
        """One job with at most so many faults."""
        job = await self._client.create_job({**SPEC, "epochs": self._epochs, **self._kept()})
        self.jobs += 1
        work = asyncio.ensure_future(self._client.wait_job(job.name))
        trouble = asyncio.ensure_future(self._trouble(job.name, work, faults))
        met = {work, trouble} if self._plant else {work}  # which nothing after the faults can hide
        done, _ = await asyncio.wait(met, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
        if work not in done:
            await self._client.cancel_job(job.name)
        ended = await work
        await trouble
        if not done:
            await self._blame(ended)
        elif work in done:
            await self._judge(ended)

    def _kept(self) -> dict[str, Any]:
        """Every other job keeps copies: it must come to the same, and its pushes are acknowledged later."""
        self._copies = 1 if self._plant or self.jobs % 2 == 0 else 2
        return {"durability": {"mode": "replicated"}} if self._copies == 2 else {}

    async def _blame(self, job: pb.Job) -> None:
        """A job is stuck or has failed."""
        self.stuck += 1
        if not self._plant:
            lines = [line.text async for line in self._client.logs(job.name)]
            print(State.Name(job.state), job.error, *lines[-30:], sep="\n", file=sys.stderr)

    async def _judge(self, job: pb.Job) -> None:
        if job.state != State.STATE_SUCCEEDED:
            await self._blame(job)
            return
        artifact = await self._at.artifacts.get_artifact(job.result.artifact)
        self.weights.update(file.sha256 for file in artifact.files if file.path == "model.safetensors")
        wanted = self._epochs * job.epochs[0].samples
        await until(
            lambda: len(self._fence.deleted(_group(job.name))) == SHARDS * self._copies, what="the group is deleted"
        )
        made = {job.progress.samples, *self._fence.deleted(_group(job.name))}
        self.other_samples += made != {wanted}

    async def _trouble(self, job: str, over: "asyncio.Future[pb.Job]", faults: int) -> None:
        follow: set[asyncio.Future[None]] = set()
        hit: set[int] = set()
        while len(hit) < faults and not over.done():
            # Some come late, when workers evaluate, export or deliver.
            await asyncio.wait({over}, timeout=self._chance.uniform(0.0, 0.8 if self._chance.random() < 0.85 else 8.0))
            seen = await self._client.get_job(job)
            how = self._how[0]
            victims = [
                worker
                for worker in seen.workers
                if worker.pid and worker.pid not in hit and (how is signal.SIGKILL or worker.HasField("heartbeat_time"))
            ]
            if not victims or seen.state in OVER:
                continue
            victim = self._chance.choice(victims)
            if how is signal.SIGSTOP:
                self._unreachable.pids.add(victim.pid)
            with suppress(ProcessLookupError):
                os.kill(victim.pid, how)
                hit.add(victim.pid)
                self._how.reverse()
                self.phases[victim.phase] += 1
                following = asyncio.ensure_future(self._follow(seen, victim, how, over))
                follow.add(following)
                if self._chance.random() < 0.7:  # else the next one comes while this one is being replaced
                    await following
        await asyncio.gather(*follow)

    async def _follow(
        self, job: pb.Job, victim: pb.Worker, how: signal.Signals, over: "asyncio.Future[pb.Job]"
    ) -> None:
        """Wait until a victim was replaced; let it go on, if it can."""
        began = time.monotonic()
        group = _group(job.name)
        await until(
            lambda: over.done() or self._fence.latest(group, victim.rank, self._copies) > victim.attempt,
            2 * PATIENCE[""],
            group,
        )
        if self._fence.latest(group, victim.rank, self._copies) > victim.attempt:
            self.replaced[how.name] += 1
            self.seconds[how.name].append(time.monotonic() - began)
        else:
            self.late += 1
        if how is signal.SIGSTOP:
            with suppress(ProcessLookupError):
                os.kill(victim.pid, signal.SIGCONT)
            try:
                await until(lambda: not lives(victim.pid), LIFE)
            except AssertionError:
                self.unheard += 1
                os.kill(victim.pid, signal.SIGKILL)
            self._unreachable.pids.discard(victim.pid)


def _group(job: str) -> str:
    """How the name of a job's group begins."""
    return f"groups/{job.removeprefix('jobs/')}-"


async def run(options: argparse.Namespace, work: Path) -> Report:
    """One job without faults, and as many more as the faults need."""
    report = Report()
    unreachable, chance = Unreachable(), random.Random(options.seed)
    os.environ["TIDEMILL_WORKER_HEARTBEAT_SECONDS"] = "0.25"
    settings: dict[str, Any] = {
        "worker_command": (),
        "max_running": 2,
        "worker_silence_seconds": 3600.0 if options.plant == "no-lease" else SILENCE,
        "worker_start_seconds": 60.0,
        "lease_seconds": 10.0,
    }
    async with world(work, shard_count=SHARDS) as at:
        fence = Fence(at.shards.addresses, options.plant, alone=SHARDS - 1)
        with unreachable.planted(), fence.watching(), Ranks(work / "training") as ranks:
            async with at.training(**settings) as client:
                alone, troubled = (Run(at, client, fence, unreachable, chance, options) for _ in range(2))
                # With a plant results are not compared.
                undisturbed = [] if options.plant else [asyncio.ensure_future(alone.job(0))]
                while (left := options.faults - troubled.replaced.total()) > 0 and not troubled.stuck:
                    await troubled.job(min(left, FAULTS))
                await asyncio.gather(*undisturbed)
            with suppress(AssertionError):
                await until(lambda: not ranks.now(), LIFE)
            remaining = len(ranks.now())
    report.none(STUCK, alone.stuck + troubled.stuck)
    report.none(OTHER, 0 if options.plant else len(troubled.weights ^ alone.weights))
    report.none(SAMPLES, troubled.other_samples)
    report.none(TAKEN, fence.taken)
    report.none(UNHEARD, troubled.unheard)
    report.none(LEFT, remaining)
    report.figures = {
        "workers replaced": dict(troubled.replaced),
        "workers hit after the last step": troubled.late,
        "what they did": dict(troubled.phases),
        "jobs": troubled.jobs,
        "seconds to the successor's push": {name: _spread(found) for name, found in troubled.seconds.items()},
        "pushes for replaced workers": fence.voices,
        "pushes by replaced workers": fence.by_processes,
        "refused": fence.refused,
    }
    return report


def _spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"median": round(ordered[len(ordered) // 2], 2), "most": round(ordered[-1], 2)} if ordered else {}


EXPERIMENT = Experiment(
    title=__doc__ or "",
    run=run,
    plants={"ignores-attempts": TAKEN, "no-lease": STUCK},
    arguments={"faults": 30, "epochs": 12, "seed": 1},
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
