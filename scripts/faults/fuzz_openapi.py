"""schemathesis over our own OpenAPI document, on `tidemill up` and on `tidemill serve`: answers are what it says."""

import argparse
import asyncio
import json
import re
import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.hostile import hostile
from tests.support.schemathesis import Outcome, schemathesis
from tests.support.up import Up
from tidemill.cli.stack import MANAGEMENT

WRONG, OF_PROTOCOL = "operations of the platform with wrong answers", "routes of the protocol with wrong answers"
NO_LOAD = "^/v2/(?!.*/load$)"
"""Loading what is not there is, by the protocol's contract, an error of status 500."""
DIED = "processes that have ended"


def planted(document: Any) -> Any:
    """The document, with one schema that no answer fits."""
    document["components"]["schemas"]["Problem"]["properties"]["status"] = {"type": "string"}
    return document


def fetched(url: str) -> Any:
    """The document that is there."""
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


async def run(options: argparse.Namespace, work: Path) -> Report:
    """All routes of the platform; then those of the protocol, on a server that has nothing else."""
    report = Report()
    with Up(work / "data", shards=1) as up:
        url = f"http://127.0.0.1:{MANAGEMENT + up.stack.port_offset}"
        document = await asyncio.to_thread(fetched, f"{url}/openapi.json")
        path = work / "openapi.json"
        path.write_text(json.dumps(planted(document) if options.plant == "schema" else document))
        before = set(up.processes())
        found = await asyncio.to_thread(schemathesis, path, url, work, examples=options.requests, seed=options.seed)
        _judge(report, WRONG, found)
        report.none(DIED, len(before - set(up.processes())))
    with hostile(work) as server:
        await server.ready()
        url = f"http://127.0.0.1:{server.rest}"
        found = await asyncio.to_thread(
            schemathesis, path, url, work, examples=options.requests, seed=options.seed, only=NO_LOAD
        )
        _judge(report, OF_PROTOCOL, found)
    return report


def _judge(report: Report, promise: str, found: Outcome) -> None:
    report.none(promise, max(len(found.failures), int(found.status != 0)))
    summary = re.findall(r"^.*(?:cases|generated|operations).*$", found.text, re.MULTILINE)
    report.figures[promise] = {"wrong": list(found.failures)[:20], "summary": summary[-6:]}


EXPERIMENT = Experiment(
    title=__doc__ or "", run=run, plants={"schema": WRONG}, arguments={"requests": 20, "seed": 20_260_101}
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
