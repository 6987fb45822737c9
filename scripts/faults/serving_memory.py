"""Loads and unloads a large model in a process of its own again and again: the server's memory stays what it was."""

import argparse
import sys
from pathlib import Path

from tests.support import onnxmodels
from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.load import answered
from tests.support.chaos.servers import Server, running
from tests.support.modelfolders import Control, Folder
from tests.support.wait import until

GROWTH, PROCESSES = "growth of resident memory, %", "processes more than before"
APART = 'backend: "onnxruntime"\nparameters { key: "isolation" value { string_value: "process" } }\n'
WARM = 2
"""Rounds before the first measurement: what is imported and pooled once is no leak."""


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Load, ask, unload; measure while it is not loaded."""
    folder = Folder(work / "models")
    folder.version("large", 1, onnxmodels.heavy(options.megabytes << 20), APART)
    # One process: another one that starts or ends meanwhile would be measured as well.
    server = Server(folder.root, work / "server.log", model_control="explicit", fronts=1)
    resident, loaded = [], []
    with running(server):
        await server.healthy()
        control = Control(server.address)
        before = 0
        for number in range(WARM + options.rounds):
            await control.load("large")
            await answered(server.address, "large")
            loaded.append(server.resident())
            if options.plant != "kept" or number < WARM + options.rounds - 1:
                await control.unload("large")
                if number >= WARM:
                    await until(lambda most=before: len(server.pids()) <= most, 30, "the model's process has ended")
            if number in (WARM - 1, WARM + options.rounds - 1):
                resident.append(await server.at_rest())
            if number == WARM - 1:
                before = len(server.pids())
        after = len(server.pids())
        await control.close()
    report = Report()
    report.at_most(GROWTH, 100 * (resident[-1] / resident[0] - 1), 5)
    report.none(PROCESSES, max(0, after - before))
    report.figures = {
        "rounds": options.rounds,
        "megabytes of the model": options.megabytes,
        "MB loaded": round(max(loaded) / 1e6, 1),
        "MB unloaded, before and after": [round(one / 1e6, 1) for one in resident],
    }
    return report


EXPERIMENT = Experiment(
    title=__doc__ or "", run=run, plants={"kept": GROWTH}, arguments={"rounds": 50, "megabytes": 200}
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
