"""The costs of the simulation, from runs that were measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scripts.benchmarks.simulation import ring
from scripts.benchmarks.simulation.costs import Costs, Outcome, RingCosts, Run, Site, Way
from scripts.benchmarks.simulation.parameterserver import ParameterServer

STEPS = 20
"""Of simulated runs: they repeat themselves."""
UPDATE = 2
"""Vectors that the plain step of the optimizer and its new version touch, as many times as adding up one gradient."""

Figures = Mapping[str, float]
"""What `measured.measure` says of one run."""


@dataclass(frozen=True, slots=True)
class Model:
    """All that was found."""

    costs: Costs
    ring: RingCosts
    site: Site
    """The host on which was measured."""
    compute: tuple[float, float]
    """Seconds of a step's computing: by one worker alone, and beside another one."""


@dataclass(frozen=True, slots=True)
class Known:
    """A run with a parameter server that was measured."""

    workers: int
    shards: int
    bytes: float
    figures: Figures


def fit(
    small: Known, large: Known, others: Sequence[Known], reduced: tuple[Known, Known], *, touch: float, cores: int
) -> Model:
    """The model that explains some runs.

    Args:
        small: one worker and one shard.
        large: the same with more bytes: the difference is the cost of a byte.
        others: with more processes, of which some have two workers: what they hinder each other is put down to the
            number of cores with which a process moves data, and to friction between those that share the host's cores.
        reduced: two runs of all-reduce by two workers, of few and of many bytes.
        touch: CPU seconds a byte for adding up two vectors.
        cores: of the host.
    """
    applied = (1 + UPDATE) * touch
    push, pull = _way("push", small, large, applied), _way("pull", small, large, 0.0)
    costs = Costs(push=push, pull=pull, mean=touch, step=UPDATE * touch)
    compute = large.figures["compute"], max(one.figures["compute"] for one in others if one.workers > 1)
    model = Model(costs, _ring(*reduced), Site(host_cores=cores), compute)
    tries = [
        replace(model, site=Site(host_cores=cores, process=cores * 1.25**-n, friction=1.1**m))
        for m in range(14)
        for n in range(11)
    ]
    return min(tries, key=lambda tried: sum(_off(tried, one) ** 2 for one in others))


def _off(model: Model, known: Known) -> float:
    """By how much of what was measured a step's exchange is predicted wrongly."""
    found = known.figures["step"] - known.figures["compute"]
    compute = model.compute[known.workers > 1]
    outcome = predict(model, known.bytes, workers=known.workers, shards=known.shards, steps=3)
    return (outcome.seconds / 3 - compute) / found - 1


def predict(
    model: Model, size: float, *, workers: int = 1, shards: int = 1, mode: str = "bsp", steps: int = STEPS
) -> Outcome:
    """What the simulation says of a run on the host on which was measured.

    Args:
        model: what was found there.
        size: bytes of the parameters.
        workers: one or two.
        shards: of the parameter server.
        mode: `bsp`, `asp` or `all-reduce`.
        steps: of each worker.
    """
    run = Run(
        workers=workers,
        shards=shards,
        bytes=size,
        steps=steps,
        compute=lambda *_: model.compute[workers > 1],
        mode="bsp" if mode == "all-reduce" else mode,
    )
    if mode == "all-reduce":
        return ring.simulate(run, model.ring, model.site)
    return ParameterServer(run, model.costs, model.site).simulate()


def _way(name: str, small: Known, large: Known, applied: float) -> Way:
    """One direction; what the shard computes with the bytes meanwhile, a byte, is not the direction's."""

    worker, shard = f"{name} worker", f"{name} shard"
    return Way(
        fixed=_rest(name, small, large),
        worker_call=_rest(worker, small, large),
        shard_call=_rest(shard, small, large),
        alone=max(0.0, _slope(name, small, large) - applied),
        worker=_slope(worker, small, large),
        shard=max(0.0, _slope(shard, small, large) - applied),
    )


def _slope(key: str, small: Known, large: Known) -> float:
    """Seconds of a further byte."""
    return max(0.0, (large.figures[key] - small.figures[key]) / (large.bytes - small.bytes))


def _rest(key: str, small: Known, large: Known) -> float:
    """Seconds that are left of a run without bytes."""
    return max(0.0, small.figures[key] - _slope(key, small, large) * small.bytes)


def _ring(few: Known, many: Known) -> RingCosts:
    # Two workers: two exchanges of half of the bytes each.
    return RingCosts(
        fixed=_rest("reduce", few, many) / 2,
        alone=_slope("reduce", few, many),
        worker=_slope("reduce worker", few, many),
    )
