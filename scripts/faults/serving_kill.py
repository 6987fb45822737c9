"""kill -9 of one of two inference servers behind Envoy, again and again under load: no call fails."""

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path

from tests.support import onnxmodels
from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.load import Load, answered, scaled
from tests.support.chaos.servers import Envoy, Server, running
from tests.support.modelfolders import Folder

FAILED = "failed calls"


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Kill, start again, wait until it gets calls again; the servers in turn."""
    Folder(work / "models").version("m", 1, onnxmodels.scale(1))
    servers = [Server(work / "models", work / f"server{number}.log") for number in (1, 2)]
    envoy = Envoy(servers, work, retries=0 if options.plant == "no-retries" else 3)
    with ExitStack() as stack:
        stack.enter_context(running(*servers, envoy))
        await envoy.sends_to(*servers)
        await answered(envoy.address, "m")
        async with Load(envoy.address, "m", scaled, rate=options.rate) as load:
            await load.calls(int(options.rate))
            for number in range(options.kills):
                victim = servers[number % 2]
                await victim.kill()
                await load.calls(int(options.rate))
                victim.start()
                # Asked itself: Envoy may not have noticed yet that it was away.
                await victim.healthy()
                await envoy.sends_to(*servers)
                await load.calls(int(options.rate / 2))
    report = Report()
    report.none(FAILED, load.outcomes.failed)
    report.figures = {"kills": options.kills, **load.outcomes.figures()}
    return report


EXPERIMENT = Experiment(
    title=__doc__ or "", run=run, plants={"no-retries": FAILED}, arguments={"kills": 20, "rate": 200.0}
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
