"""A model whose process dies of segmentation faults under load, beside another model: only its own calls fail."""

import argparse
import sys
from pathlib import Path

from tests.support import onnxmodels
from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.load import OK, WRONG, Load, answered, scaled
from tests.support.chaos.models import crashing
from tests.support.chaos.servers import Server, running
from tests.support.modelfolders import Folder

OTHER, WRONGS = "failed calls of the other model", "wrong answers"


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Load on both; every so-many-th call kills the process of one."""
    folder = Folder(work / "models")
    folder.version("steady", 1, onnxmodels.scale(1))
    folder.put("fragile", crashing(options.every, parent=options.plant == "parent"))
    server = Server(folder.root, work / "server.log")
    back = True
    with running(server):
        await server.healthy()
        await answered(server.address, "fragile")
        begun = server.pid
        async with (
            Load(server.address, "steady", scaled, rate=options.rate) as steady,
            Load(server.address, "fragile", scaled, rate=options.rate / 2) as fragile,
        ):
            await fragile.calls(options.crashes * options.every)
        alive = server.alive and server.pid == begun
        if alive:
            await answered(server.address, "fragile", again=True)
        back = alive
    report = Report()
    report.none(OTHER, steady.outcomes.failed)
    report.none(WRONGS, len(steady.outcomes.only(WRONG).all) + len(fragile.outcomes.only(WRONG).all))
    report.at_least("calls that the crashes cost", fragile.outcomes.failed, 1)
    report.at_least("answers of the model that crashes", len(fragile.outcomes.only(OK).all), 1)
    report.exactly("answers again at the end", int(back), 1)
    report.figures = {
        "steady": steady.outcomes.codes(),
        "fragile": fragile.outcomes.codes(),
        "p99 ms of the other model": round(steady.outcomes.quantile(0.99), 1),
        "failures": fragile.outcomes.details(),
    }
    return report


EXPERIMENT = Experiment(
    title=__doc__ or "", run=run, plants={"parent": OTHER}, arguments={"crashes": 10, "every": 100, "rate": 200.0}
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
