"""What is seen of a server while hostile requests come, and what of it must not change."""

import math
import os
import re
import urllib.request
from collections import Counter, deque
from pathlib import Path

import grpc

from tests.support.chaos.experiment import Report
from tests.support.chaos.hostile import MODELS, Hostile
from tidemill.api.compat.inference import service_pb2 as pb
from tidemill.api.compat.inference import service_pb2_grpc as pg
from tidemill.rpc.status import UNEXPECTED

FAULTS, DEAD, TOLD, ENDED, GROWN, OPENED, LEFT, WRONG, LATE = (
    "answers that blame the server",
    "times that it did not answer",
    "texts that tell about the inside",
    "processes that have ended",
    "growth of memory in percent",
    "files opened outside",
    "shared memory left behind",
    "good requests without the right answer",
    "p99 of refusals in ms",
)
REFUSALS = {"INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "400", "404", "413", "429"}
"""Outcomes of requests that are to be refused at once."""
PARTS = {"chain": {"scale", "batched"}}
"""Ensembles, and the models without which they are not there."""
APART = {"repeat", "add_sub"}
"""Models with processes of their own."""
LINGER = 5
"""Looks after which the process of a model that was unloaded must have ended: it may finish what it has."""
_UNKNOWN = re.compile(r"Request for unknown model ?: '([^']*)'")
_INSIDE = re.compile(r"Traceback|\b0x[0-9a-f]{6}|/dev/shm|object at|(?<!model)\.py\b|Errno|/tmp/|/proc/|site-packages")
_WARM = 500
"""Requests before memory counts: what is imported and pooled once is no leak."""


class Served:
    """Which models are served, after what hostile requests have had loaded and unloaded."""

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self._endings = deque([0], LINGER)

    @property
    def endings(self) -> int:
        """How many processes of models may end now: those of models that were unloaded or loaded anew lately."""
        return sum(self._endings)

    def looked(self, ended: int) -> None:
        """So many have ended since the last look."""
        for number, may in enumerate(self._endings):
            self._endings[number] -= min(may, ended)
            ended -= min(may, ended)
        self._endings.append(0)

    def load(self, model: str, *, done: bool) -> None:
        """A model was to be loaded; also one that cannot be has had a process for a while."""
        self._endings[-1] += model in APART
        if done:
            self.gone.discard(model)

    def unload(self, model: str, *, done: bool, dependents: bool = False) -> None:
        """A model was to be unloaded, perhaps with its parts."""
        self._endings[-1] += model in APART and model not in self.gone
        if done:
            self.gone |= {model, *(PARTS.get(model, set()) if dependents else set())}

    def restored(self) -> None:
        """All are served again."""
        self.gone.clear()

    def has(self, model: str) -> bool:
        """Whether requests for this model must be answered."""
        return model in MODELS and not {model, *PARTS.get(model, set())} & self.gone

    def excuses(self, text: str) -> bool:
        """Whether this is the error of a request for a model that was unloaded."""
        found = _UNKNOWN.search(text)
        return found is not None and not self.has(found[1])


class Watch:
    """Looks at a server.

    Args:
        server: which; all of its models are served.
        total: how many requests there will be.
        growth: of memory that is borne, in percent.
        late: milliseconds within which a request is refused.
    """

    def __init__(self, server: Hostile, total: int, growth: float, late: float) -> None:
        self._server = server
        self._total = total
        self._growth = growth
        self._late = late
        self.refusals: list[float] = []
        self._shared: set[str] = set()
        found = _commands(server)
        self._pids = {pid: command for pid, command in found.items() if not _of_a_model(command)}
        self._models = {pid for pid, command in found.items() if _of_a_model(command)}
        self._apart = len(self._models)
        self.ended: list[str] = []
        self.served = Served()
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.told: list[str] = []
        self.good = 0
        self.wrong: list[str] = []
        self.silent: list[str] = []
        self.elsewhere: set[str] = set()
        self.memory: list[tuple[int, int]] = []

    def answered(self, outcome: str, text: str, request: object, *, fault: bool, seconds: float | None = None) -> None:
        """One hostile request has been answered so; an unexpected error is a fault in any case.

        Args:
            outcome: status of the answer.
            text: of the error.
            request: what was asked.
            fault: whether such an answer blames the server.
            seconds: that it took; None where a refusal may take its time, as when files are read first.
        """
        self.outcomes[outcome] += 1
        if seconds is not None and outcome in REFUSALS:
            self.refusals.append(1000 * seconds)
        if fault or UNEXPECTED in text:
            self.faults.append(f"{outcome}: {text[:200]}: {str(request)[:300]}")
        elif (inside := _INSIDE.search(text)) and inside.group() not in str(request):
            self.told.append(text[:300])

    def checked(self, model: str, problem: str) -> None:
        """A good request to a model that is there was answered; `problem` tells what was wrong, "" = nothing."""
        self.good += 1
        if problem:
            self.wrong.append(f"{model}: {problem[:300]}")

    def look(self, number: int) -> None:
        """It must be alive; take its processes, its memory and its files."""
        for problem in (_rpc_problem(self._server.address), _rest_problem(self._server.url)):
            if problem:
                self.silent.append(problem[:500])
        found = _commands(self._server)
        for pid in self._pids.keys() - found.keys():
            self.ended.append(f"before request {number}: {self._pids.pop(pid)!r}")
        now = {pid for pid, command in found.items() if _of_a_model(command)}
        gone = len(self._models - now)
        if gone > self.served.endings:
            self.ended.append(f"before request {number}: {gone} of models, {self.served.endings} of them unloaded")
        self.served.looked(gone)
        self._models = now
        self.memory.append((number, self._server.resident()))
        self.elsewhere |= set(self._server.elsewhere())
        self._shared |= self._server.shared()

    def report(self) -> Report:
        """What has been seen, judged. All models are served again."""
        report = Report()
        report.none(FAULTS, len(self.faults))
        report.none(WRONG, len(self.wrong))
        report.at_least("good requests in between", self.good, self._total / 20)
        report.none(DEAD, len(self.silent))
        report.none(TOLD, len(self.told))
        report.none(ENDED, len(self.ended))
        report.exactly("processes of models at the end", len(self._models), self._apart)
        warm = [size for number, size in self.memory if number > max(_WARM, 0.2 * self._total)]
        half = len(warm) // 2
        first, second = (sum(part) / max(1, len(part)) for part in (warm[:half], warm[half:]))
        report.at_most(GROWN, 100 * (second - first) / max(1, first), self._growth)
        refusals = sorted(self.refusals)
        report.at_most(LATE, refusals[len(refusals) * 99 // 100] if refusals else math.inf, self._late)
        report.none(OPENED, len(self.elsewhere))
        report.none(LEFT, sum(os.path.exists(path) for path in self._shared))
        report.figures = {
            "outcomes": dict(self.outcomes.most_common()),
            "MiB, first half": round(first / 2**20, 1),
            "MiB, second half": round(second / 2**20, 1),
            "refusals": len(refusals),
            "slowest refusal in ms": round(refusals[-1], 1) if refusals else None,
            "faults": self.faults[:5],
            "wrong": self.wrong[:5],
            "ended": self.ended[:5],
            "silent": self.silent[:5],
            "told": self.told[:5],
            "elsewhere": sorted(self.elsewhere)[:5],
        }
        return report


def _rpc_problem(address: str) -> str:
    with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        try:
            answer = pg.GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest(), timeout=10)
        except grpc.RpcError as error:
            return str(error)
    return "" if answer.live else "it says that it is not live"


def _rest_problem(url: str) -> str:
    try:
        with urllib.request.urlopen(f"{url}/v2/health/live", timeout=10):
            return ""
    except OSError as error:
        return str(error)


def _commands(server: Hostile) -> dict[int, bytes]:
    """Command lines of the server's processes that run, by pid."""
    found = {}
    for pid in server.pids():
        try:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
    return {pid: command for pid, command in found.items() if command}


def _of_a_model(command: bytes) -> bool:
    """Whether a process runs one model and so ends when that is unloaded."""
    return b"isolation.child" in command
