"""Every optimizer does block by block what its twin in `torch.optim` does with the whole, and describes itself."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tidemill import config, errors, plugins
from tidemill.parameters import catalogue, optimizers
from tidemill.parameters.optimizers.base import Optimizer
from tidemill.parameters.part import Part
from tidemill.tensors.blocks import Array, Block

NAMES = plugins.names(optimizers)
SIZES = (4097, 1000, 1, 262144, 333)
"""Of blocks, with every kind of rest beside the width of a vector register."""
ELEMENTS = sum(SIZES)
STEPS = 50

Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
CASES: dict[str, list[tuple[Mapping[str, Any], Make]]] = {
    "sgd": [
        ({}, lambda p: torch.optim.SGD(p, lr=0.01)),
        (
            {"learning_rate": 0.1, "weight_decay": 0.01},
            lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
        ),
    ],
    "momentum": [
        ({}, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
        (
            {"learning_rate": 0.1, "momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.8, dampening=0.3, weight_decay=0.01),
        ),
    ],
    "nesterov": [
        ({}, lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True)),
        (
            {"learning_rate": 0.1, "momentum": 0.7, "weight_decay": 0.01},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.7, weight_decay=0.01, nesterov=True),
        ),
    ],
    "adam": [
        ({}, lambda p: torch.optim.Adam(p)),
        (
            {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6, "weight_decay": 0.01},
            lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.01),
        ),
    ],
    "adamw": [
        ({}, lambda p: torch.optim.AdamW(p)),
        (
            {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6, "weight_decay": 0.1},
            lambda p: torch.optim.AdamW(p, lr=0.02, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
        ),
    ],
    "adagrad": [
        ({}, lambda p: torch.optim.Adagrad(p)),
        (
            {"learning_rate": 0.1, "learning_rate_decay": 0.01, "initial_accumulator": 0.1, "weight_decay": 0.01},
            lambda p: torch.optim.Adagrad(p, lr=0.1, lr_decay=0.01, initial_accumulator_value=0.1, weight_decay=0.01),
        ),
    ],
}
"""For each optimizer: hyperparameters, and the same in `torch.optim`."""


def part() -> Part:
    blocks, offset = [], 0
    for index, size in enumerate(SIZES):
        blocks.append(Block(index, offset, size))
        offset += size
    return Part(blocks)


def gradients() -> list[Array]:
    random = np.random.default_rng(7)
    # Zeros and very large and small values too: what makes an optimizer's denominators strange.
    scales = np.where(random.random(ELEMENTS) < 0.05, 0, 10.0 ** random.uniform(-6, 3, ELEMENTS))
    return [(random.standard_normal(ELEMENTS) * scales).astype(np.float32) for _ in range(STEPS)]


def first() -> Array:
    return np.random.default_rng(3).standard_normal(ELEMENTS, dtype=np.float32)


def ours(name: str, parameters: Mapping[str, Any]) -> tuple[Array, Optimizer]:
    cut = part()
    optimizer = catalogue.make(catalogue.check(name, parameters), SIZES)
    values = first()
    for gradient in gradients():
        optimizer.step(cut.views(values), cut.views(gradient))
    return values, optimizer


def theirs(make: Make) -> torch.Tensor:
    parameter = torch.nn.Parameter(torch.from_numpy(first()))
    optimizer = make([parameter])
    for gradient in gradients():
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    return parameter.detach()


def test_every_optimizer_is_compared() -> None:
    assert set(CASES) == set(NAMES)


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in CASES for case in range(len(CASES[name]))])
def test_equals_its_twin_to_the_bit(name: str, case: int) -> None:
    parameters, make = CASES[name][case]
    values, _ = ours(name, parameters)
    assert torch.equal(torch.from_numpy(values), theirs(make))


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_fused_is_as_good_as_exact(name: str) -> None:
    parameters, make = CASES[name][1]
    values, _ = ours(name, {**parameters, "fused": True})
    np.testing.assert_allclose(values, theirs(make).numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_steps_give_the_same_bits(name: str) -> None:
    (one, left), (two, right) = ours(name, {}), ours(name, {})
    np.testing.assert_array_equal(one, two)
    assert left.state().keys() == right.state().keys()


@pytest.mark.parametrize("name", NAMES)
def test_state_is_a_copy_with_one_array_a_block(name: str) -> None:
    cut, optimizer = part(), ours(name, {})[1]
    before = optimizer.state()
    for tensors in before.values():
        for size, array in zip(SIZES, tensors, strict=True):
            assert array is not None
            assert array.dtype == np.float32
            assert array.shape in ((size,), (1,))
    kept = {state: [None if a is None else a.copy() for a in tensors] for state, tensors in before.items()}
    optimizer.step(cut.views(first()), cut.views(first()))
    for state, tensors in before.items():
        for array, copy in zip(tensors, kept[state], strict=True):
            np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("name", NAMES)
def test_says_how_large_its_state_is(name: str) -> None:
    optimizer = ours(name, {})[1]
    large = [
        tensors for tensors in optimizer.state().values() if tuple(a.size for a in tensors if a is not None) == SIZES
    ]
    assert catalogue.states(catalogue.check(name, {})) == optimizer.states == len(large)


@pytest.mark.parametrize("name", NAMES)
def test_describes_itself_and_its_parameters(name: str) -> None:
    kind = plugins.load(optimizers, name, Optimizer)
    assert kind.__doc__
    fields = dataclasses.fields(kind.Config)
    assert fields
    assert all(field.metadata["help"] for field in fields)
    described = next(d for d in catalogue.describe() if d.name == name)
    assert [p[0] for p in described.parameters] == [field.name for field in fields]
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind.Config().learning_rate = 1.0


@pytest.mark.parametrize("name", NAMES)
def test_checks_names_types_and_ranges(name: str) -> None:
    with pytest.raises(errors.Invalid, match="learning_rate"):
        catalogue.check(name, {"learning_rate": -1})
    with pytest.raises(errors.Invalid, match="learning_rate"):
        catalogue.check(name, {"learning_rate": "fast"})
    with pytest.raises(errors.Invalid) as unknown:
        catalogue.check(name, {"speed": 1})
    assert unknown.value.reason == "UNKNOWN_PARAMETER"
    kind = plugins.load(optimizers, name, Optimizer)
    assert catalogue.check(name, {}).parameters == dataclasses.asdict(config.from_mapping(kind.Config, {}))


def test_an_unknown_optimizer_is_named_with_those_there_are() -> None:
    with pytest.raises(errors.Invalid, match="adamw") as unknown:
        catalogue.check("lion", {})
    assert unknown.value.reason == "UNKNOWN_OPTIMIZER"
