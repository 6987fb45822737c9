"""Mutated HTTP requests to every route, models of all kinds behind them: no fault, alive throughout, memory flat."""

import argparse
import asyncio
import random
import sys
from pathlib import Path

import httpx

from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.hostile import FAULTS, GROWN, MODELS, Hostile, Watch, hostile
from tests.support.gateway import settings
from tests.support.httpmutation import Request, requests
from tidemill.gateway.app import build
from tidemill.gateway.server import HttpServer
from tidemill.gateway.site import Site

MEANT = ("failed to load ", "failed to poll from model repository", "the model failed on these inputs")
"""Texts that the protocol's clients test for, under a status that would blame the server."""
STATUSES = {501, 503}
"""What is not offered, and what must wait."""


async def routes() -> list[tuple[str, str]]:
    """Verb and template of every route that the server has."""
    app = build(settings(inference_only=True))
    assert isinstance(app.server, HttpServer)
    assert isinstance(app.server.main, Site)
    found = [(route.verb, route.template) for front in app.server.main.fronts for route in front.table.routes]
    await app.stop(grace=0)
    return found


def known(dice: random.Random, request: Request) -> Request:
    """The same, for a model that is there more often than not."""
    parts = request.path.split("/")
    return request.to("/".join(dice.choice(MODELS) if part == "m" and dice.random() < 0.9 else part for part in parts))


async def attack(server: Hostile, watch: Watch, options: argparse.Namespace) -> None:
    """Send everything."""
    dice = random.Random(options.seed)
    base = f"http://127.0.0.1:{server.rest}"
    async with httpx.AsyncClient(base_url=base, timeout=30, trust_env=False) as http:
        for number, plain in enumerate(requests(dice, await routes(), options.requests)):
            request = known(dice, plain)
            status, text = await sent(http, request)
            fault = status >= 500 and status not in STATUSES and not any(meant in text for meant in MEANT)
            watch.answered(str(status), text if status >= 400 else "", request, fault=fault)
            if options.plant == "blame" and number == 100:
                watch.answered("500", "invalid literal for int()", request, fault=True)
            if number % 100 == 99:
                await asyncio.to_thread(watch.look, number + 1)
                for model in MODELS:
                    await http.post(f"/v2/repository/models/{model}/load", json={})
                await http.post("/v2/systemsharedmemory/unregister")


async def sent(http: httpx.AsyncClient, request: Request) -> tuple[int, str]:
    """Status and text of the answer; status 599 without one."""
    try:
        answer = await http.request(request.verb, request.path, content=request.body, headers=request.headers)
    except httpx.HTTPError as error:
        return 599, repr(error)
    return answer.status_code, answer.text[:2000]


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Send mutants, and look at the server after each hundred."""
    with hostile(work) as server:
        await server.ready()
        watch = Watch(server, options.requests, leak=100_000 if options.plant == "leak" else 0)
        await attack(server, watch, options)
        return watch.report()


EXPERIMENT = Experiment(
    title=__doc__ or "",
    run=run,
    plants={"blame": FAULTS, "leak": GROWN},
    arguments={"requests": 10_000, "seed": 20_260_101},
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
