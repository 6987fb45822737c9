"""Up to a thousand workers with machines of their own: what each way to train makes of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from scripts.benchmarks.simulation import ring
from scripts.benchmarks.simulation.calibration import Model
from scripts.benchmarks.simulation.costs import Outcome, Run, Site
from scripts.benchmarks.simulation.parameterserver import ParameterServer
from scripts.benchmarks.straggling.delays import Delays

WAYS: Mapping[str, str] = {"all-reduce": "all-reduce", "bsp": "BSP", "ssp": "SSP", "asp": "ASP"}
"""The most exact first."""
BLOCK = 1 << 20
"""Bytes of a block: a shard without one has nothing to do."""
GAIN = 0.02
"""A less exact way wins when it is quicker by more than this part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Machines and a model."""

    bytes: float = 100e6
    compute: float = 0.1
    """Seconds of a step."""
    extra: float = 5.0
    """Times that, which a straggling step takes beyond."""
    network: float = 25e9 / 8
    """Bytes a second of each machine, each way."""
    latency: float = 50e-6
    """Seconds of the network, for every call."""
    workers_a_shard: int = 2
    staleness: int = 3
    steps: int = 15
    """Of each worker."""
    stale_cost: float = 0.1
    """What is assumed, not measured: part of a step's worth that is lost for every round by which it is stale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """So many workers, of whose steps so many straggle, and what came of it."""

    workers: int
    probability: float
    rates: Mapping[str, float] = field(default_factory=dict)
    """By way, steps of a worker a second of all workers together."""
    missed: Mapping[str, float] = field(default_factory=dict)
    """By way, rounds by which a step is stale on average."""

    def worth(self, stale_cost: float) -> dict[str, float]:
        """The rates, each divided by what its staleness costs."""
        return {way: rate / (1 + stale_cost * self.missed[way]) for way, rate in self.rates.items()}

    def winner(self, stale_cost: float) -> str:
        """The way that makes most of these workers."""
        worth = self.worth(stale_cost)
        best = next(iter(worth))
        for way, rate in worth.items():
            if rate > worth[best] * (1 + GAIN):
                best = way
        return best


def explore(model: Model, scenario: Scenario, workers: Sequence[int], probabilities: Sequence[float]) -> list[Point]:
    """Every number of workers with every part of straggling steps."""
    return [_point(model, scenario, count, part) for part in probabilities for count in workers]


def _point(model: Model, scenario: Scenario, workers: int, probability: float) -> Point:
    delays = Delays(scenario.compute, scenario.extra * scenario.compute, probability, seed=1)
    spans = [[delays.of(worker, step) for step in range(scenario.steps)] for worker in range(workers)]
    site = Site(process=model.site.process, network=scenario.network, latency=scenario.latency)
    found: dict[str, Outcome] = {}
    for way in WAYS:
        run = Run(
            workers=workers,
            shards=min(math.ceil(workers / scenario.workers_a_shard), math.ceil(scenario.bytes / BLOCK)),
            bytes=scenario.bytes,
            steps=scenario.steps,
            compute=lambda worker, step: spans[worker][step],
            mode="bsp" if way == "all-reduce" else way,
            staleness=scenario.staleness if way == "ssp" else 0,
        )
        if way == "all-reduce":
            found[way] = ring.simulate(run, model.ring, site)
        else:
            found[way] = ParameterServer(run, model.costs, site, alike=True).simulate()
    return Point(
        workers=workers,
        probability=probability,
        rates={way: outcome.rate for way, outcome in found.items()},
        missed={way: outcome.missed for way, outcome in found.items()},
    )
