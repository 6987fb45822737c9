"""Ten times the load that a server can bear: it goes on answering what it can, refuses the rest, and recovers."""

import argparse
import asyncio
import os
import sys
import time
from pathlib import Path

from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.load import OK, WRONG, Load, answered, scaled
from tests.support.chaos.models import slow
from tests.support.chaos.servers import Server, running
from tests.support.modelfolders import Folder

GOODPUT, OTHERS = "goodput/maximum", "calls that end neither answered, refused nor late"
ENDS = (OK, "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Measure what it can bear, give it `times` that, and look again when that is over."""
    folder = Folder(work / "models")
    folder.put("m", slow(options.cost_ms / 1000))
    # More waiting than can be answered in time: the fault of a queue without a bound.
    bound = 100_000 if options.plant == "no-bound" else options.max_waiting
    # Callers of a real server compute elsewhere: what they cost here must not count as the server's.
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[len(cores) // 2 :])
    server = Server(folder.root, work / "server.log", cores=cores[: len(cores) // 2], max_waiting=bound)
    with running(server):
        await server.healthy()
        await answered(server.address, "m")
        # Twice what is possible keeps it busy all the time; what it answers then is the most that it can.
        async with Load(server.address, "m", scaled, rate=1000 / options.cost_ms * 2, timeout=60) as load:
            begin = time.monotonic()
            await asyncio.sleep(options.probe)
            most = len(load.outcomes.only(OK).all) / (time.monotonic() - begin)
        normal = await _half(server, most, options)
        before = server.resident()
        async with Load(
            server.address, "m", scaled, rate=options.times * most, timeout=options.timeout, connections=8
        ) as load:
            begin = time.monotonic()
            await asyncio.sleep(options.seconds)
            grown = server.resident() - before
            end = time.monotonic()
        over = load.outcomes.between(begin, end)
        await asyncio.sleep(5)
        after = await _half(server, most, options)
    refused = over.only("RESOURCE_EXHAUSTED")
    report = Report()
    report.at_least(GOODPUT, len(over.only(OK).all) / (end - begin) / most, 0.8)
    report.none(OTHERS, sum(one.code not in ENDS for one in over.all))
    report.none("wrong answers", len(over.only(WRONG).all))
    report.at_most("growth of resident memory, MB", grown / 1e6, 200)
    report.at_most("p99 of a refusal, ms", refused.quantile(0.99), options.refusal_ms)
    report.at_most("p99 5 s after/before", after / normal, 2)
    report.figures = {
        "maximum, answers a second": round(most, 1),
        "offered, calls a second": round(options.times * most, 1),
        "codes": over.codes(),
        "p99 ms of answers under overload": round(over.only(OK).quantile(0.99), 1),
        "p99 ms before, 5 s after": [round(normal, 1), round(after, 1)],
        "failures": over.details(),
    }
    return report


async def _half(server: Server, most: float, options: argparse.Namespace) -> float:
    async with Load(server.address, "m", scaled, rate=most / 2, timeout=60) as load:
        await asyncio.sleep(options.probe)
    return load.outcomes.quantile(0.99)


EXPERIMENT = Experiment(
    title=__doc__ or "",
    run=run,
    plants={"no-bound": GOODPUT},
    arguments={
        "seconds": 60.0,
        "times": 10.0,
        "probe": 5.0,
        "cost_ms": 10.0,
        "timeout": 2.0,
        "max_waiting": 64,
        "refusal_ms": 100.0,
    },
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
