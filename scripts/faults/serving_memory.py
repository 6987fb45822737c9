"""Loads and unloads a large model in a process of its own again and again: the server's memory stays what it was."""

import argparse
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.support import onnxmodels
from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.load import answered
from tests.support.chaos.models import leaving
from tests.support.chaos.servers import Server, adopt, commands, end, running
from tests.support.modelfolders import Control, Folder
from tests.support.wait import until

GROWTH, PROCESSES = "growth of resident memory, %", "processes that have gone or are left"
APART = 'backend: "onnxruntime"\nparameters { key: "isolation" value { string_value: "process" } }\n'
WARM = 2
"""Rounds before the first measurement: what is imported and pooled once is no leak."""
PATIENCE = 5.0
"""Seconds in which the process of a model must have ended."""


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Load, ask, unload; measure while it is not loaded."""
    adopt()
    folder = Folder(work / "models")
    if options.plant == "left":
        folder.put("large", leaving())
    else:
        folder.version("large", 1, onnxmodels.heavy(options.megabytes << 20), APART)
    server = Server(folder.root, work / "server.log", model_control="explicit", fronts=options.fronts)
    resident, loaded = [], []
    with running(server):
        await server.healthy()
        control = Control(server.address)
        before: dict[int, str] = {}
        for number in range(WARM + options.rounds):
            await control.load("large")
            await answered(server.address, "large")
            loaded.append(server.resident())
            if options.plant != "kept" or number < WARM + options.rounds - 1:
                await control.unload("large")
            if number == WARM - 1:
                resident.append(await server.at_rest())
                before = commands()
            elif number >= WARM:
                await _as_before(before)
        resident.append(await server.at_rest())
        after = commands()
        await control.close()
    for pid in commands():  # what the server has left behind
        end(pid)
    changed = before.items() ^ after.items()
    report = Report()
    report.at_most(GROWTH, 100 * (resident[-1] / resident[0] - 1), 5)
    report.none(PROCESSES, len(changed))
    report.figures = {
        "rounds": options.rounds,
        "processes": len(before),
        "megabytes of the model": options.megabytes,
        "MB loaded": round(max(loaded) / 1e6, 1),
        "MB unloaded, before and after": [round(one / 1e6, 1) for one in resident],
        "gone or left": sorted(command for _, command in changed)[:5],
    }
    return report


async def _as_before(processes: Mapping[int, str]) -> None:
    """Return when exactly these processes run, or when that has been waited for: what is left is counted at the end."""
    with suppress(AssertionError):
        await until(lambda: commands() == processes, PATIENCE)


EXPERIMENT = Experiment(
    title=__doc__ or "",
    run=run,
    plants={"kept": GROWTH, "left": PROCESSES},
    arguments={"rounds": 50, "megabytes": 200, "fronts": 0},
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
