"""kill -9 of parameter shards at random moments: nothing acknowledged is lost, and nothing is applied twice."""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.pushes import RATE, Half, Trial
from tests.support.chaos.servers import Process, running
from tests.support.ports import free_ports
from tests.support.wait import until
from tidemill import errors
from tidemill.clients.parameters import ParametersAdmin

LOST, TWICE, BACK, AGAIN, HEARD, FAILED, RECOVERY = (
    "pushes that were acknowledged and lost",
    "pushes that were applied twice",
    "pulls that were behind what had been acknowledged",
    "acknowledged pushes that were taken once more when they were repeated after a restart",
    "pushes of replaced workers that were taken after a restart",
    "workers and readers that could not go on",
    "seconds from a kill to the next acknowledged push, 95th percentile",
)
SHARDS, WORKERS, ELEMENTS = 2, 2, 64 << 10
MODES = ("bsp", "asp")
LOG_BYTES = 1 << 20
"""So few that the log is begun anew after every few steps."""
PATIENCE = 30.0
HALF_EVERY = 4
"""Of so many kills one comes while a push to the shard is half sent."""


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Kill one shard or the other, again and again, under groups of all modes."""
    chance = random.Random(options.seed)
    ports = free_ports(SHARDS)
    shards = [_shard(number, port, work, options.plant) for number, port in enumerate(ports)]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    durability = "none" if options.plant == "no-durability" else "wal"
    seconds: list[float] = []
    with running(*shards), ExitStack() as stack:
        async with ParametersAdmin(addresses) as admin:
            await until(lambda: _answers(admin), PATIENCE, "the shards answer")
            trials = []
            for mode in MODES:
                await _group(admin, mode, durability)
                trial = await asyncio.to_thread(Trial, addresses, f"groups/{mode}", durable=durability == "wal")
                trials.append(stack.enter_context(trial))
        for number in range(options.kills):
            half = trials[number // HALF_EVERY % len(MODES)] if number % HALF_EVERY == HALF_EVERY - 1 else None
            seconds.append(await _kill(chance, shards, trials, half))
            if any(trial.seen.failures for trial in trials):
                break
        await asyncio.to_thread(stack.close)
    return _report(trials, seconds)


def _shard(number: int, port: int, work: Path, plant: str) -> Process:
    flags = {
        "shard": number,
        "port": port,
        "ops-port": 0,
        "registry-address": "",
        "log-level": "ERROR",
        "data": work / f"shard-{number}",
        "log-bytes": LOG_BYTES,
    }
    command = [sys.executable, "-m", "tests.support.chaos.faulty_shard", plant]
    return Process([*command, *(f"--{name}={value}" for name, value in flags.items())], work / f"shard-{number}.log")


async def _answers(admin: ParametersAdmin) -> bool:
    try:
        for shard in range(SHARDS):
            _ = [group async for group in admin.list_groups(shard)]
    except errors.TidemillError:
        return False
    return True


async def _group(admin: ParametersAdmin, mode: str, durability: str) -> None:
    await admin.create_group(
        f"groups/{mode}",
        [("counts", (ELEMENTS,))],
        optimizer="sgd",
        parameters={"learning_rate": RATE},
        workers=WORKERS,
        mode=mode,
        durability=durability,
    )


async def _kill(
    chance: random.Random, shards: Sequence[Process], trials: Sequence[Trial], halved: Trial | None
) -> float:
    """Kill a shard, and start it again; seconds until a push of every group is acknowledged that began afterwards."""
    await asyncio.sleep(chance.uniform(0.05, 0.5))
    number = chance.randrange(len(shards))
    half: Half | None = None
    if halved is not None:
        half = halved.halve(number)
        await asyncio.to_thread(half.sent.wait, PATIENCE)
        await asyncio.sleep(chance.uniform(0.0, 0.02))  # of its blocks all may have arrived, or some
    killed = time.monotonic()
    await shards[number].kill()
    for trial in trials:
        trial.kills += 1
    shards[number].start()
    if half is not None:
        half.over.set()
    return max(await asyncio.gather(*(asyncio.to_thread(each.acknowledges, killed, PATIENCE) for each in trials)))


def _report(trials: Sequence[Trial], seconds: Sequence[float]) -> Report:
    report = Report()
    seen = [trial.seen for trial in trials]
    report.none(LOST, sum(each.lost for each in seen))
    report.none(TWICE, sum(each.twice for each in seen))
    report.none(BACK, sum(each.back for each in seen))
    report.none(AGAIN, sum(each.taken_again for each in seen))
    report.none(HEARD, sum(each.heard for each in seen))
    report.none(FAILED, sum(len(each.failures) for each in seen))
    ordered = sorted(seconds)
    report.at_most(RECOVERY, ordered[max(0, -(-len(ordered) * 95 // 100) - 1)], 5.0)
    report.figures = {
        "kills": len(seconds),
        "kills while a push was half sent": sum(each.halves for each in seen),
        "pushes acknowledged": sum(each.pushes for each in seen),
        "pulls checked": sum(each.pulls for each in seen),
        "pushes repeated after a restart": sum(each.repeated for each in seen),
        "pushes of replaced workers after a restart": sum(each.old for each in seen),
        "pulls behind what was shown before it was acknowledged": sum(each.unsure for each in seen),
        "recovery in seconds, median": round(ordered[len(ordered) // 2], 2),
        "recovery in seconds, most": round(ordered[-1], 2),
        "failures": [failure for each in seen for failure in each.failures],
    }
    return report


EXPERIMENT = Experiment(
    title=__doc__ or "",
    run=run,
    plants={"no-durability": LOST},
    arguments={"kills": 100, "seed": 1},
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
