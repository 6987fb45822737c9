"""SIGTERM to two inference servers in turn behind Envoy, which retries nothing: no call fails."""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.support import onnxmodels
from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.load import Load, answered, scaled
from tests.support.chaos.servers import Envoy, Server, running
from tests.support.modelfolders import Folder

FAILED, STATUS = "failed calls", "exit statuses other than 0"


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Stop, start again, wait until it gets calls again; the servers in turn."""
    Folder(work / "models").version("m", 1, onnxmodels.scale(1))
    planted = options.plant == "no-linger"
    linger = 0.0 if planted else options.linger
    servers = [Server(work / "models", work / f"server{n}.log", linger_seconds=linger) for n in (1, 2)]
    # Where a stop takes its time by itself, a balancer that looks often might see it: the planted one looks seldom.
    envoy = Envoy(servers, work, retries=0, check_seconds=30.0 if planted else 1.0)
    statuses = []
    with ExitStack() as stack:
        stack.enter_context(running(*servers, envoy))
        await envoy.sends_to(*servers)
        await answered(envoy.address, "m")
        async with Load(envoy.address, "m", scaled, rate=options.rate) as load:
            await load.calls(int(options.rate))
            for number in range(options.stops):
                server = servers[number % 2]
                statuses.append(await server.stop())
                if planted:
                    await load.calls(int(options.rate))
                    break
                server.start()
                # Asked itself: Envoy may not have noticed yet that it was away.
                await server.healthy()
                await envoy.sends_to(*servers)
                await load.calls(int(options.rate / 2))
    report = Report()
    report.none(FAILED, load.outcomes.failed)
    report.none(STATUS, sum(status != 0 for status in statuses))
    report.figures = {"stops": options.stops, **load.outcomes.figures()}
    return report


EXPERIMENT = Experiment(
    title=__doc__ or "",
    run=run,
    plants={"no-linger": FAILED},
    arguments={"stops": 20, "rate": 200.0, "linger": 3.0},
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
