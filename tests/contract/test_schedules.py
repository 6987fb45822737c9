"""Every schedule gives the learning rates of its twin in `torch.optim.lr_scheduler`, and describes itself."""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from tidemill import plugins, schedules
from tidemill.errors import Invalid
from tidemill.parameters import catalogue
from tidemill.schedules.base import Schedule

NAMES = plugins.names(schedules)
RATE = 0.3
STEPS = 40

Make = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]
CASES: dict[str, list[tuple[Mapping[str, Any], Make]]] = {
    "constant": [({}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0))],
    "step": [({"every": 7, "gamma": 0.3}, lambda o: lr_scheduler.StepLR(o, 7, gamma=0.3))],
    "exponential": [({"gamma": 0.9}, lambda o: lr_scheduler.ExponentialLR(o, 0.9))],
    "cosine": [
        ({"steps": STEPS}, lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS)),
        (
            {"steps": STEPS, "minimum": 0.1},
            lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.1 * RATE),
        ),
    ],
    "linear": [
        (
            {"steps": 30, "start": 1.0, "end": 0.0},
            lambda o: lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=0.0, total_iters=30),
        ),
        (
            {"steps": 9, "start": 0.2, "end": 0.7},
            lambda o: lr_scheduler.LinearLR(o, start_factor=0.2, end_factor=0.7, total_iters=9),
        ),
    ],
}
"""For each schedule: parameters, and the same in PyTorch."""
ALL = [(name, case) for name in CASES for case in range(len(CASES[name]))]


def schedule(name: str, parameters: Mapping[str, Any]) -> Schedule:
    kind = plugins.load(schedules, name, Schedule)
    return kind(kind.Config(**catalogue.check_schedule(name, parameters).parameters))


def theirs(make: Make) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    scheduler = make(optimizer)
    rates = []
    for _ in range(STEPS):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def test_every_schedule_is_compared() -> None:
    assert set(CASES) == set(NAMES)


@pytest.mark.parametrize(("name", "case"), ALL)
def test_equals_its_twin(name: str, case: int) -> None:
    parameters, make = CASES[name][case]
    ours = [RATE * schedule(name, parameters).factor(step) for step in range(STEPS)]
    # PyTorch multiplies step by step, with a rounding at each: the last float64 bits differ, which float32 cannot see.
    assert ours == pytest.approx(theirs(make), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(("name", "case"), ALL)
def test_begins_after_a_warm_up(name: str, case: int) -> None:
    parameters = CASES[name][case][0]
    warm = schedule(name, {**parameters, "warmup_steps": 5})

    def sequence(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        rising = lr_scheduler.LinearLR(optimizer, start_factor=1 / 6, total_iters=5)
        return lr_scheduler.SequentialLR(optimizer, [rising, lr_scheduler.LambdaLR(optimizer, after.factor)], [5])

    after = schedule(name, parameters)
    assert [RATE * warm.factor(step) for step in range(STEPS)] == pytest.approx(theirs(sequence), rel=1e-12)
    assert [warm.factor(step) for step in range(6)][:5] == [(step + 1) / 6 for step in range(5)]


@pytest.mark.parametrize("name", NAMES)
def test_is_defined_for_ever_and_never_negative(name: str) -> None:
    found = [schedule(name, {}).factor(step) for step in (0, 1, 999, 1000, 1001, 10**6, 10**12)]
    assert all(math.isfinite(factor) and 0 <= factor <= 1 for factor in found)
    assert schedule(name, {}).factor(0) == 1


def test_a_cosine_stays_at_its_minimum() -> None:
    cosine = schedule("cosine", {"steps": 10, "minimum": 0.25})
    assert [cosine.factor(step) for step in (10, 11, 20)] == [0.25] * 3


@pytest.mark.parametrize("name", NAMES)
def test_describes_itself_and_its_parameters(name: str) -> None:
    kind = plugins.load(schedules, name, Schedule)
    described = next(d for d in catalogue.describe_schedules() if d.name == name)
    assert described.text
    assert [p[0] for p in described.parameters] == [field.name for field in dataclasses.fields(kind.Config)]
    assert described.parameters[0][0] == "warmup_steps"
    assert all(meaning and json.dumps(default) for _, _, default, meaning in described.parameters)


@pytest.mark.parametrize("name", NAMES)
def test_checks_names_types_and_ranges(name: str) -> None:
    for wrong in ({"warmup_steps": -1}, {"warmup_steps": 0.5}, {"warmup_steps": "long"}, {"speed": 1}):
        with pytest.raises(Invalid) as refused:
            catalogue.check_schedule(name, wrong)
        assert any(field.startswith("schedule.parameters.") for field in refused.value.violations)


def test_an_unknown_schedule_is_named_with_those_there_are() -> None:
    with pytest.raises(Invalid, match="cosine") as unknown:
        catalogue.check_schedule("cyclic", {})
    assert unknown.value.reason == "UNKNOWN_SCHEDULE"
