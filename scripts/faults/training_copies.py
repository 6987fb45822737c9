"""kill -9 of parameter shards with copies: the copy goes on at once, nothing acknowledged is lost or applied twice."""

import argparse
import asyncio
import random
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.pushes import Trial
from tests.support.chaos.servers import running
from tests.support.chaos.shardprocesses import HEARD, LOST, MODES, PATIENCE, Shards, report, wait
from tidemill.clients.parameters import ParametersAdmin, ParametersClient, PushOutcome
from tidemill.clients.replicas import LocalArbiter, Replicas

SHARDS = 3
LESS = 3.0
"""Seconds to wait for acknowledgements with a fault, which lets nobody go on."""


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Kill one shard of new groups of all modes, and start it again for the next ones."""
    shards = Shards(SHARDS, work, options.plant, random.Random(options.seed))
    trials: list[Trial] = []
    seconds: list[float] = []
    with running(*shards.processes), _planted(options.plant):
        while len(seconds) < options.kills and not any(trial.seen.failures for trial in trials):
            async with ParametersAdmin(shards.addresses) as admin:
                await shards.ready(admin)
                fresh = []
                for mode in MODES:
                    name = f"groups/{mode}-{len(seconds)}"
                    fresh.append(await shards.trial(admin, name, mode, "replicated", LocalArbiter()))
                trials += fresh
                seconds.append(await _kill(options.plant, shards, fresh, len(seconds)))
                await shards.ready(admin)
                for trial in fresh:
                    await admin.delete_group(trial.group)
    return report(trials, seconds, options.recovery)


async def _kill(plant: str, shards: Shards, trials: list[Trial], kills: int) -> float:
    """Kill a shard under these groups; seconds until they go on without it."""
    with ExitStack() as stack:
        for trial in trials:
            stack.enter_context(trial)
        await asyncio.to_thread(wait, trials, 0.0)  # until there is something to lose
        revive = kills % 2 == 1  # it comes back at once every other time, and knows nothing
        patience = LESS if plant else PATIENCE
        number, seconds = await shards.kill(trials, kills, patience, revive=revive, forgets=True)
        for trial in trials:
            await asyncio.to_thread(trial.audit)
        await asyncio.to_thread(stack.close)
    if not revive:
        shards.processes[number].start()
    return seconds


@contextmanager
def _planted(plant: str) -> Iterator[None]:
    """Workers with a fault, while the block runs."""
    if plant != "acknowledges-one":
        yield
        return
    everywhere, push = Replicas.all, ParametersClient.push
    at_work = threading.local()

    def one(self: ParametersClient, *arguments: Any, **options: Any) -> PushOutcome:
        at_work.pushes = True
        try:
            return push(self, *arguments, **options)
        finally:
            at_work.pushes = False

    def few(self: Replicas) -> list[int]:
        return self.first() if getattr(at_work, "pushes", False) else everywhere(self)

    Replicas.all, ParametersClient.push = few, one  # type: ignore[method-assign]
    try:
        yield
    finally:
        Replicas.all, ParametersClient.push = everywhere, push  # type: ignore[method-assign]


EXPERIMENT = Experiment(
    title=__doc__ or "",
    run=run,
    plants={"acknowledges-one": LOST, "ignores-attempts": HEARD},
    arguments={"kills": 100, "recovery": 1.5, "seed": 1},
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
