"""kill -9 of parameter shards with a log: nothing acknowledged is lost, and nothing is applied twice."""

import argparse
import asyncio
import random
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.servers import running
from tests.support.chaos.shardprocesses import HEARD, LOST, MODES, PATIENCE, TWICE, Shards, report, wait
from tidemill.clients.parameters import ParametersAdmin

SHARDS = 2
LESS = 3.0
"""Seconds to wait for acknowledgements with a fault, which lets nobody go on."""


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Kill one shard or the other and start it again, on and on, under groups of all modes."""
    shards = Shards(SHARDS, work, options.plant, random.Random(options.seed))
    durability = "none" if options.plant == "no-durability" else "wal"
    seconds: list[float] = []
    with running(*shards.processes), ExitStack() as stack:
        async with ParametersAdmin(shards.addresses) as admin:
            await shards.ready(admin)
            trials = [await shards.trial(admin, f"groups/{mode}", mode, durability) for mode in MODES]
        for trial in trials:
            stack.enter_context(trial)
        await asyncio.to_thread(wait, trials, 0.0)  # until there is something to lose
        while len(seconds) < options.kills and not any(trial.seen.failures for trial in trials):
            patience = LESS if options.plant else PATIENCE
            seconds.append((await shards.kill(trials, len(seconds), patience, revive=True))[1])
        for trial in trials:
            await asyncio.to_thread(trial.audit)
        await asyncio.to_thread(stack.close)
    found = report(trials, seconds, options.recovery)
    found.figures["kills while a state was being written"] = shards.writing
    return found


EXPERIMENT = Experiment(
    title=__doc__ or "",
    run=run,
    plants={
        "acknowledges-early": LOST,
        "forgets-pushes": TWICE,
        "forgets-attempts": HEARD,
        "no-durability": LOST,
    },
    arguments={"kills": 100, "recovery": 5.0, "seed": 1},
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
