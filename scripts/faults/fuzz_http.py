"""Mutated HTTP requests to every route, models of all kinds behind them: no fault, alive throughout, memory flat."""

import argparse
import asyncio
import random
import re
import sys
import time
from pathlib import Path

import httpx

from tests.support.chaos.controls import Control, controls
from tests.support.chaos.experiment import Experiment, Report
from tests.support.chaos.hostile import MODELS, hostile
from tests.support.chaos.watch import ENDED, FAULTS, GROWN, LATE, WRONG, Watch
from tests.support.gateway import settings
from tests.support.httpmutation import Request, requests
from tidemill.gateway.app import build
from tidemill.gateway.server import HttpServer
from tidemill.gateway.site import Site

MEANT = {
    "/load": ("failed to load ", "failed to poll from model repository"),
    "/infer": ("the model failed on these inputs",),
}
"""Texts that the protocol's clients test for, under status 500, which would blame the server; by the path's end."""
REPOSITORY = re.compile(r"/v2/repository(?:/[^/]+)?/models/([^/]+)/(load|unload)", re.IGNORECASE)
NOT_OFFERED, NO_ANSWER = 501, 599
GOOD = 0.1
"""Part of the requests after which a good one comes."""


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


class Attack:
    """Sends requests.

    Args:
        http: to the server.
        watch: judges the answers.
        dice: for what is sent.
    """

    def __init__(self, http: httpx.AsyncClient, watch: Watch, dice: random.Random) -> None:
        self._http = http
        self._watch = watch
        self._dice = dice

    async def run(self, count: int) -> None:
        """Send everything."""
        number = 0
        for number, plain in enumerate(requests(self._dice, await routes(), count), 1):
            request = known(self._dice, plain)
            began = time.monotonic()
            status, text = await sent(self._http, request)
            took = None if request.path.endswith("/load") else time.monotonic() - began
            self._note(request, done=status == 200)
            fault = status >= 500 and status != NOT_OFFERED and not self._meant(request, status, text)
            self._watch.answered(str(status), text if status >= 400 else "", request, fault=fault, seconds=took)
            if self._dice.random() < GOOD:
                await self._check(self._dice.choice(controls()))
            if number % 100 == 0:
                await asyncio.to_thread(self._watch.look, number)
                if self._watch.silent or not await self._restore():
                    break
        await self._restore()
        await asyncio.to_thread(self._watch.look, number)

    def _meant(self, request: Request, status: int, text: str) -> bool:
        if status == 500:
            (meant,) = [texts for ending, texts in MEANT.items() if request.path.endswith(ending)] or [()]
            return any(one in text for one in meant)
        return status == 503 and self._watch.served.excuses(text)

    def _note(self, request: Request, *, done: bool) -> None:
        if request.verb != "POST" or (found := REPOSITORY.fullmatch(request.path)) is None:
            return
        if found[2] == "load":
            self._watch.served.load(found[1], done=done)
        else:
            # What else is unloaded is told in a body that may be broken: its parts count as gone.
            self._watch.served.unload(found[1], done=done, dependents=True)

    async def _check(self, control: Control) -> None:
        if not self._watch.served.has(control.model):
            return
        try:
            answer = await self._http.post(f"/v2/models/{control.model}/infer", json=control.document())
            problem = control.judge_document(answer.json()) if answer.status_code == 200 else answer.text
        except (httpx.HTTPError, ValueError) as error:
            problem = repr(error)
        self._watch.checked(control.model, problem)

    async def _restore(self) -> bool:
        """Load what a mutant may have unloaded, and forget what another one has set; whether the server did so."""
        for model in MODELS:
            ready = await self._status("GET", f"/v2/models/{model}/ready") == 200
            if not ready and await self._status("POST", f"/v2/repository/models/{model}/load") != 200:
                self._watch.silent.append(f"{model} cannot be loaded again")
                return False
        await self._status("POST", "/v2/systemsharedmemory/unregister")
        self._watch.served.restored()
        return True

    async def _status(self, verb: str, path: str) -> int:
        try:
            return (await self._http.request(verb, path)).status_code
        except httpx.HTTPError:
            return NO_ANSWER


async def sent(http: httpx.AsyncClient, request: Request) -> tuple[int, str]:
    """Status and text of the answer; status `NO_ANSWER` without one."""
    try:
        answer = await http.request(request.verb, request.path, content=request.body, headers=request.headers)
    except httpx.HTTPError as error:
        return NO_ANSWER, repr(error)
    return answer.status_code, answer.text[:2000]


async def run(options: argparse.Namespace, work: Path) -> Report:
    """Send mutants, good requests in between, and look at the server after each hundred."""
    with hostile(work, options.plant) as server:
        await server.ready()
        watch = Watch(server, options.requests, options.growth, options.refusal_ms)
        async with httpx.AsyncClient(base_url=server.url, timeout=30, trust_env=False) as http:
            await Attack(http, watch, random.Random(options.seed)).run(options.requests)
        return watch.report()


EXPERIMENT = Experiment(
    title=__doc__ or "",
    run=run,
    plants={
        "gateway-error": FAULTS,
        "gateway-death": ENDED,
        "gateway-leak": GROWN,
        "gateway-tardy": LATE,
        "inference-lie": WRONG,
    },
    arguments={"requests": 10_000, "seed": 20_260_101, "growth": 5.0, "refusal_ms": 100.0},
)

if __name__ == "__main__":
    sys.exit(EXPERIMENT.main())
