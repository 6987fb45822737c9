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
from tests.support.chaos.pushes import RATE, Half, Rest, Trial
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
MODES = ("asp", "bsp")
LOG_BYTES = 1 << 20
"""So few that the log is begun anew after every few steps."""
PATIENCE = 60.0
LESS = 6.0
"""The same with a fault, which lets nobody go on."""


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Kill one shard or the other, again and again, under groups of all modes."""
    chance = random.Random(options.seed)
    ports = free_ports(SHARDS)
    shards = [_shard(number, port, work, options.plant) for number, port in enumerate(ports)]
    addresses = [f"127.0.0.1:{port}" for port in ports]
    durability = "none" if options.plant == "no-durability" else "wal"
    patience = LESS if options.plant else PATIENCE
    seconds: list[float] = []
    writing = 0
    with running(*shards), ExitStack() as stack:
        async with ParametersAdmin(addresses) as admin:
            await until(lambda: _answers(admin), PATIENCE, "the shards answer")
            trials = []
            for mode in MODES:
                await _group(admin, mode, durability)
                trial = await asyncio.to_thread(Trial, addresses, f"groups/{mode}", durable=durability == "wal")
                trials.append(stack.enter_context(trial))
        await asyncio.to_thread(_wait, trials, 0.0, PATIENCE)  # until there is something to lose
        for number in range(options.kills):
            found, at_work = await _kill(chance, shards, trials, number, work, patience)
            seconds.append(found)
            writing += at_work
            if any(trial.seen.failures for trial in trials):
                break
        for trial in trials:
            await asyncio.to_thread(trial.audit)
        await asyncio.to_thread(stack.close)
    return _report(trials, seconds, writing, options.recovery)


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
    chance: random.Random, shards: Sequence[Process], trials: Sequence[Trial], kills: int, work: Path, patience: float
) -> tuple[float, bool]:
    """Kill a shard, and start it again; of four times once while a worker rests, once while a push is half sent.

    Returns:
        Seconds until a push of every group is acknowledged; whether a state was being written.
    """
    await asyncio.sleep(chance.uniform(0.05, 0.5))
    number = chance.randrange(len(shards))
    chosen, kind = trials[kills // 4 % len(trials)], kills % 4
    during: Half | Rest | None = chosen.pause(number) if kind == 0 else chosen.halve(number) if kind == 2 else None
    if during is not None:
        await asyncio.to_thread(during.sent.wait, PATIENCE)
        await asyncio.sleep(chance.uniform(0.0, 0.02))  # of half a push all may have arrived, or some
    killed = time.monotonic()
    await shards[number].kill()
    for trial in trials:
        trial.kills += 1
    writing = _writing(work / f"shard-{number}")
    shards[number].start()
    if during is not None:
        during.over.set()
    return await asyncio.to_thread(_wait, trials, killed, patience), writing


def _writing(data: Path) -> bool:
    """Whether the log of a group was begun anew, and the state before it is not there yet."""
    return any(not log.with_suffix(".state").exists() for log in data.glob("groups/*/*.log"))


def _wait(trials: Sequence[Trial], since: float, patience: float) -> float:
    """Seconds until a push of every group is acknowledged after `since`."""
    return max(trial.acknowledges(since, patience) for trial in trials)


def _report(trials: Sequence[Trial], seconds: Sequence[float], writing: int, recovery: float) -> Report:
    report = Report()
    seen = [trial.seen for trial in trials]
    report.none(LOST, sum(each.lost for each in seen))
    report.none(TWICE, sum(each.twice for each in seen))
    report.none(BACK, sum(each.back for each in seen))
    report.none(AGAIN, sum(each.taken_again for each in seen))
    report.none(HEARD, sum(each.heard for each in seen))
    report.none(FAILED, sum(len(each.failures) for each in seen))
    ordered = sorted(seconds)
    report.at_most(RECOVERY, ordered[max(0, -(-len(ordered) * 95 // 100) - 1)], recovery)
    report.figures = {
        "kills": len(seconds),
        "kills while a state was being written": writing,
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
