"""Every optimizer does block by block what its twin in `torch.optim` does with the whole, and describes itself."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.lamb import WholeLamb
from tests.support.rules import blocks_of, rule_choice
from tidemill import config, errors, plugins
from tidemill.parameters import catalogue, optimizers
from tidemill.parameters.optimizers.base import Layerwise, Optimizer
from tidemill.parameters.part import Part
from tidemill.parameters.rule import Rule, run
from tidemill.parameters.segments import combine
from tidemill.tensors.blocks import BLOCK, Array

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
    "rmsprop": [
        ({}, lambda p: torch.optim.RMSprop(p)),
        (
            {"learning_rate": 0.02, "alpha": 0.9, "epsilon": 1e-6, "momentum": 0.8, "weight_decay": 0.01},
            lambda p: torch.optim.RMSprop(p, lr=0.02, alpha=0.9, eps=1e-6, momentum=0.8, weight_decay=0.01),
        ),
        (
            {"centered": True, "momentum": 0.5},
            lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5),
        ),
    ],
    "lamb": [
        ({}, lambda p: WholeLamb(p)),
        (
            {"learning_rate": 0.02, "beta1": 0.8, "beta2": 0.99, "epsilon": 1e-5, "weight_decay": 0.0},
            lambda p: WholeLamb(p, lr=0.02, betas=(0.8, 0.99), eps=1e-5, weight_decay=0.0),
        ),
    ],
}
"""For each optimizer: hyperparameters, and the same in `torch.optim`."""
ALL = [(name, case) for name in CASES for case in range(len(CASES[name]))]
FUSED = ["sgd", "momentum", "nesterov", "adam", "adamw", "adagrad"]


def part() -> Part:
    return Part(blocks_of(SIZES))


@cache
def drawn() -> list[Array]:
    random = np.random.default_rng(7)
    # Zeros and very large and small values too: what makes an optimizer's denominators strange.
    scales = np.where(random.random(ELEMENTS) < 0.05, 0, 10.0 ** random.uniform(-6, 3, ELEMENTS))
    return [(random.standard_normal(ELEMENTS) * scales).astype(np.float32) for _ in range(STEPS)]


def gradients(steps: int = STEPS) -> Iterator[Array]:
    return (gradient.copy() for gradient in drawn()[:steps])


def first() -> Array:
    return np.random.default_rng(3).standard_normal(ELEMENTS, dtype=np.float32)


def rule(name: str, parameters: Mapping[str, Any]) -> Rule:
    return catalogue.make_rule(rule_choice(name, **parameters), [ELEMENTS], part().blocks)


def step(made: Rule, values: Array, gradient: Array) -> None:
    run(made.step(part().views(values), part().views(gradient)), lambda partials: combine([partials], 1))


def ours(name: str, parameters: Mapping[str, Any], steps: int = STEPS) -> tuple[Array, Rule]:
    made, values = rule(name, parameters), first()
    for gradient in gradients(steps):
        step(made, values, gradient)
    return values, made


def theirs(make: Make) -> torch.Tensor:
    parameter = torch.nn.Parameter(torch.from_numpy(first()))
    optimizer = make([parameter])
    for gradient in gradients():
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    return parameter.detach()


def test_every_optimizer_is_compared() -> None:
    assert set(CASES) == set(NAMES)


@pytest.mark.parametrize(("name", "case"), ALL)
def test_equals_its_twin_to_the_bit(name: str, case: int) -> None:
    parameters, make = CASES[name][case]
    values, _ = ours(name, parameters)
    assert torch.equal(torch.from_numpy(values), theirs(make))


@pytest.mark.parametrize("name", NAMES)
def test_offers_fused_where_it_is_compared(name: str) -> None:
    kind = plugins.load(optimizers, name, Optimizer)
    assert ("fused" in {field.name for field in dataclasses.fields(kind.Config)}) == (name in FUSED)


@pytest.mark.parametrize("name", FUSED)
def test_fused_is_as_good_as_exact(name: str) -> None:
    parameters, make = CASES[name][1]
    values, _ = ours(name, {**parameters, "fused": True})
    np.testing.assert_allclose(values, theirs(make).numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FUSED)
def test_fused_is_the_same_to_the_bit_for_the_whole_vector_and_its_full_blocks(name: str) -> None:
    parameters = {**CASES[name][1][0], "fused": True}
    random = np.random.default_rng(5)
    elements = 2 * BLOCK + 333
    whole = random.standard_normal(elements, dtype=np.float32)
    cut = whole.copy()
    sizes = (BLOCK, BLOCK, 333)
    alone = catalogue.make(catalogue.check(name, parameters), [elements])
    blocks, pieces = Part(blocks_of(sizes)), catalogue.make(catalogue.check(name, parameters), sizes)
    for _ in range(5):
        gradient = random.standard_normal(elements, dtype=np.float32)
        pieces.step(blocks.views(cut), blocks.views(gradient.copy()))
        alone.step([whole], [gradient])
    np.testing.assert_array_equal(whole, cut)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov"])
def test_decoupled_weight_decay_shrinks_the_parameters_beside_the_step(name: str) -> None:
    decayed = first()
    made = rule(name, {"learning_rate": 0.1, "weight_decay": 0.2, "decoupled_weight_decay": True})
    parameter = torch.nn.Parameter(torch.from_numpy(first()))
    twin = CASES[name][0][1]([parameter])
    twin.param_groups[0]["lr"] = 0.1
    for gradient in gradients(3):
        parameter.grad = torch.from_numpy(gradient.copy())
        with torch.no_grad():
            parameter.mul_(1 - 0.1 * 0.2)
        twin.step()
        step(made, decayed, gradient)
    assert torch.equal(torch.from_numpy(decayed), parameter.detach())


@pytest.mark.parametrize("name", NAMES)
def test_a_block_alone_makes_the_same_step(name: str) -> None:
    kind = plugins.load(optimizers, name, Optimizer)
    if issubclass(kind, Layerwise):
        with pytest.raises(errors.Unimplemented):
            catalogue.make(catalogue.check(name, {}), [3]).step([np.ones(3, np.float32)], [np.ones(3, np.float32)])
        return
    together, values = ours(name, {}, 2)[0], first()
    one = catalogue.make(catalogue.check(name, {}), SIZES)
    for gradient in gradients(2):
        for at, (block, piece) in enumerate(zip(part().views(values), part().views(gradient), strict=True)):
            one.step_block(at, block, piece)
    np.testing.assert_array_equal(values, together)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_steps_give_the_same_bits(name: str) -> None:
    (one, left), (two, right) = ours(name, {}, 5), ours(name, {}, 5)
    np.testing.assert_array_equal(one, two)
    assert left.state().keys() == right.state().keys()


@pytest.mark.parametrize("name", NAMES)
def test_state_is_a_copy_with_one_array_a_block(name: str) -> None:
    made = ours(name, {}, 1)[1]
    before = made.state()
    for tensors in before.values():
        for size, array in zip(SIZES, tensors, strict=True):
            assert array is not None
            assert array.dtype == np.float32
            assert array.shape in ((size,), (1,))
    kept = {state: [None if a is None else a.copy() for a in tensors] for state, tensors in before.items()}
    step(made, first(), first())
    for state, tensors in before.items():
        for array, copy in zip(tensors, kept[state], strict=True):
            np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(("name", "case"), ALL)
def test_says_how_large_its_state_is(name: str, case: int) -> None:
    parameters = CASES[name][case][0]
    state = ours(name, parameters, 1)[1].state()
    large = [tensors for tensors in state.values() if tuple(a.size for a in tensors if a is not None) == SIZES]
    assert catalogue.states(catalogue.check(name, parameters)) == len(large)


@pytest.mark.parametrize(("name", "case"), ALL)
def test_goes_on_from_its_state_to_the_bit(name: str, case: int) -> None:
    parameters = CASES[name][case][0]
    made, values, copy = rule(name, parameters), first(), first()
    for number, gradient in enumerate(gradients(6)):
        step(made, values, gradient.copy())
        if number < 3:
            copy = values.copy()
            resumed = rule(name, parameters)
            resumed.restore(made.state(), made.steps)
        else:
            step(resumed, copy, gradient)
    assert resumed.steps == 6
    np.testing.assert_array_equal(copy, values)


@pytest.mark.parametrize("name", NAMES)
def test_begins_anew_from_its_first_state(name: str) -> None:
    began = rule(name, {}).state()
    values, made = ours(name, {}, 2)
    made.restore(began, 0)
    again = first()
    for gradient in gradients(2):
        step(made, again, gradient)
    np.testing.assert_array_equal(again, values)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_a_state_that_is_not_its_own(name: str) -> None:
    made = ours(name, {}, 1)[1]
    state = made.state()
    wrong: list[dict[str, list[Array | None]]] = [{**state, "speed": [None] * len(SIZES)}]
    if state:
        some = next(iter(state))
        wrong += [{**state, some: state[some][1:]}, {**state, some: [np.ones(7, np.float32)] * len(SIZES)}]
        wrong += [{**state, some: [None, *state[some][1:]]}, {}]
    for other in wrong:
        with pytest.raises(errors.Invalid) as refused:
            made.restore(other, 3)
        assert refused.value.reason == "STATE_MISMATCH"
    assert made.steps == 1
    for kept, now in zip(state.values(), made.state().values(), strict=True):
        for one, two in zip(kept, now, strict=True):
            np.testing.assert_array_equal(one, two)


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
