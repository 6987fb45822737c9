"""Swaps between two versions of a model under load, corrupt ones in between: no call fails, no answer is another's."""

import argparse
import json
import sys
import time
from pathlib import Path

from tests.support import onnxmodels
from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.load import WRONG, Load, answered, scaled
from tests.support.chaos.servers import Server, running
from tests.support.modelfolders import Control, Folder
from tidemill.errors import TidemillError

FAILED, MISMATCHED = "calls without an answer", "answers whose version does not match their weights"
CORRUPT, LOADED, LATE = "answers of a corrupt version", "loads of a corrupt version that succeed", "answers of the past"
VERSIONS = (1, 2)
BAD = 3


def corrupt(number: int) -> bytes:
    """A file that is no model: cut, of other bytes, or empty."""
    whole = onnxmodels.scale(BAD)
    return (whole[: len(whole) // 2], bytes(len(whole)), b"", whole[:40] + whole[44:])[number % 4]


async def swap(control: Control, version: int) -> None:
    """Let this version alone serve."""
    await control.load("m", json.dumps({"version_policy": {"specific": {"versions": [version]}}}))


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Swap; from time to time try a corrupt version; every answer is judged."""
    folder = Folder(work / "models")
    for version in VERSIONS:
        factor = 1 if options.plant == "wrong-weights" else version
        folder.version("m", version, onnxmodels.scale(factor), 'backend: "onnxruntime"\n')
    server = Server(folder.root, work / "server.log", model_control="explicit", load_models="*")
    every = max(1, options.swaps // max(options.corrupt, 1))
    current: list[tuple[float, float, int]] = []
    loaded = tried = 0
    with running(server):
        await server.healthy()
        await answered(server.address, "m")
        control = Control(server.address)
        await swap(control, 1)
        async with Load(server.address, "m", scaled, rate=options.rate) as load:
            for number in range(options.swaps):
                version = VERSIONS[(number + 1) % 2]
                if options.plant == "unload-first":
                    await control.unload("m")
                await swap(control, version)
                begin = time.monotonic()
                await load.calls(max(1, int(options.rate / 10)))
                if number % every == 0 and tried < options.corrupt:
                    folder.version("m", BAD, corrupt(tried))
                    tried += 1
                    try:
                        await swap(control, BAD)
                        loaded += 1
                    except TidemillError:
                        await load.calls(max(1, int(options.rate / 10)))
                current.append((begin, time.monotonic(), version))
        await control.close()
    found = load.outcomes.all
    late = [
        one
        for begin, end, version in current
        for one in load.outcomes.between(begin, end).all
        if one.version and one.due + one.seconds < end and one.version != str(version)
    ]
    report = Report()
    report.none(FAILED, sum(not one.version for one in found))
    report.none(MISMATCHED, len(load.outcomes.only(WRONG).all))
    report.none(LATE, len(late))
    report.none(CORRUPT, sum(one.version == str(BAD) for one in found))
    report.none(LOADED, loaded)
    report.exactly("corrupt versions tried", tried, options.corrupt)
    report.figures = {
        "calls": len(found),
        "swaps": options.swaps,
        "codes": load.outcomes.codes(),
        "versions": {version: sum(one.version == str(version) for one in found) for version in VERSIONS},
        "p50 ms": round(load.outcomes.quantile(0.5), 1),
        "p99 ms": round(load.outcomes.quantile(0.99), 1),
        "failures": load.outcomes.details(),
    }
    return report


EXPERIMENT = Experiment(
    title=__doc__ or "",
    run=run,
    plants={"wrong-weights": MISMATCHED, "unload-first": FAILED},
    arguments={"swaps": 200, "corrupt": 20, "rate": 200.0},
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
