"""The costs that measured runs come to, where the runs were made by known costs; and who wins by them."""

from dataclasses import replace

import pytest

from scripts.benchmarks import scale
from scripts.benchmarks.simulation.calibration import Known, Model, fit, predict
from scripts.benchmarks.simulation.costs import Costs, RingCosts, Site, Way
from scripts.benchmarks.simulation.scenario import Point, Scenario, explore

PUSH = Way(fixed=0.002, worker_call=0.001, shard_call=0.0005, alone=1e-9, worker=4e-10, shard=7e-10)
PULL = Way(fixed=0.001, worker_call=0.0004, shard_call=0.0006, alone=8e-10, worker=6e-10, shard=4e-10)
TOUCH = 1e-10
TRUE = Model(
    Costs(push=PUSH, pull=PULL, mean=TOUCH, step=2 * TOUCH),
    RingCosts(fixed=0.0002, alone=9e-10, worker=4e-10),
    Site(host_cores=2, process=1.28, friction=1.21),
    (0.05, 0.055),
)


def ran(workers: int, shards: int, size: float, mode: str = "bsp") -> Known:
    """What would be measured if the world were `TRUE`."""
    step = workers / predict(TRUE, size, workers=workers, shards=shards, mode=mode).rate
    compute = TRUE.compute[workers > 1]
    applied = 3 * TOUCH * size
    return Known(
        workers,
        shards,
        size,
        {
            "step": step,
            "compute": compute,
            "push": PUSH.fixed + PUSH.alone * size + applied,
            "push worker": PUSH.worker_call + PUSH.worker * size,
            "push shard": PUSH.shard_call + PUSH.shard * size + applied,
            "pull": PULL.fixed + PULL.alone * size,
            "pull worker": PULL.worker_call + PULL.worker * size,
            "pull shard": PULL.shard_call + PULL.shard * size,
            "reduce": step - compute,
            "reduce worker": TRUE.ring.worker * size,
        },
    )


def fitted() -> Model:
    return fit(
        ran(1, 1, 1e6),
        ran(1, 1, 32e6),
        [ran(1, 2, 32e6), ran(2, 1, 32e6)],
        (ran(2, 1, 1e5, "all-reduce"), ran(2, 1, 32e6, "all-reduce")),
        touch=TOUCH,
        cores=2,
    )


def test_the_costs_are_found_that_the_runs_were_made_by() -> None:
    model = fitted()
    for found, true in ((model.costs.push, PUSH), (model.costs.pull, PULL)):
        for name in Way.__slots__:
            assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-6), name
    assert model.costs == replace(TRUE.costs, push=model.costs.push, pull=model.costs.pull)
    assert model.compute == TRUE.compute
    assert model.ring.alone == pytest.approx(TRUE.ring.alone)
    assert model.ring.fixed == pytest.approx(TRUE.ring.fixed)


def test_runs_that_were_held_out_are_predicted() -> None:
    model = fitted()
    for workers, shards, size, mode in ((2, 2, 32e6, "bsp"), (2, 1, 16e6, "bsp"), (2, 1, 32e6, "asp")):
        true = predict(TRUE, size, workers=workers, shards=shards, mode=mode)
        found = predict(model, size, workers=workers, shards=shards, mode=mode)
        assert found.rate == pytest.approx(true.rate, rel=0.02)


def test_an_exacter_way_wins_unless_another_one_gains_enough() -> None:
    missed = {"all-reduce": 0.0, "bsp": 0.0, "ssp": 1.0, "asp": 2.0}
    rates = {"all-reduce": 100.0, "bsp": 101.0, "ssp": 120.0, "asp": 130.0}
    point = Point(workers=8, probability=0.1, rates=rates, missed=missed)
    assert point.winner(0.0) == "asp"
    assert point.winner(0.1) == "ssp"
    assert point.winner(1.0) == "all-reduce"


def test_stragglers_are_what_rounds_lose_by() -> None:
    calm, stormy = explore(TRUE, Scenario(bytes=1e6, steps=10), [16], [0.0, 0.1])
    assert calm.rates["bsp"] > 2 * stormy.rates["bsp"]
    assert stormy.rates["asp"] >= stormy.rates["ssp"] > 1.3 * stormy.rates["bsp"]
    assert (stormy.missed["bsp"], stormy.missed["all-reduce"]) == (0, 0)
    assert stormy.missed["asp"] > 0


def test_no_run_that_is_predicted_calibrates() -> None:
    assert not set(scale.CALIBRATION.values()) & set(scale.HELD_OUT.values())
    assert set(scale.PROMISED) <= set(scale.HELD_OUT)
