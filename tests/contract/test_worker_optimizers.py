"""The optimizers that workers run are those of the parameter servers: same names, same hyperparameters, same bits."""

from typing import Any

import numpy as np
import pytest

from tests.support.rules import Shards, blocks_of
from tidemill import config, errors, plugins
from tidemill.parameters import catalogue
from tidemill.parameters import optimizers as served
from tidemill.parameters.optimizers.base import Layerwise
from tidemill.parameters.optimizers.base import Optimizer as Served
from tidemill.training import rule
from tidemill.training.optimizers import KINDS, Optimizer
from tidemill.training.strategies.base import Extras

SIZE = 4097
CUT = 1025
CASES: list[tuple[str, dict[str, Any]]] = [
    *[(name, {}) for name in KINDS],
    ("sgd", {"learning_rate": 0.1, "weight_decay": 0.01}),
    ("momentum", {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.01}),
    ("nesterov", {"momentum": 0.7, "weight_decay": 0.01}),
    ("nesterov", {"momentum": 0}),
    *[(name, {"weight_decay": 0.1, "decoupled_weight_decay": True}) for name in ("sgd", "momentum", "nesterov")],
    ("adam", {"beta1": 0.8, "beta2": 0.99, "epsilon": 1e-6, "weight_decay": 0.01}),
    ("adamw", {"weight_decay": 0.1}),
    ("adagrad", {"learning_rate_decay": 0.1, "initial_accumulator": 0.5, "weight_decay": 0.01}),
    ("rmsprop", {"alpha": 0.9, "momentum": 0.5, "centered": True, "weight_decay": 0.01}),
]


def gradient(step: int) -> Any:
    return np.random.default_rng(step).normal(size=SIZE).astype(np.float32)


def test_all_are_there_that_treat_elements_alone() -> None:
    alone = {name for name in plugins.names(served) if not issubclass(plugins.load(served, name, Served), Layerwise)}
    assert set(KINDS) == alone


@pytest.mark.parametrize("name", KINDS)
def test_hyperparameters_are_the_same(name: str) -> None:
    assert config.describe(KINDS[name].config) == config.describe(plugins.load(served, name, Served).Config)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_steps_are_the_same_to_the_bit_wherever_the_vector_is_cut(name: str, options: dict[str, Any]) -> None:
    mine = Optimizer(name, options, SIZE)
    sizes = [CUT] * (SIZE // CUT) + [SIZE % CUT] * bool(SIZE % CUT)
    kind = plugins.load(served, name, Served)
    filled = config.from_mapping(kind.Config, options)
    theirs = kind(filled, sizes)
    whole = gradient(100)
    cut = np.split(whole.copy(), np.cumsum(sizes)[:-1])
    for step in range(20):
        mine.step(whole, gradient(step))
        theirs.step(cut, np.split(gradient(step), np.cumsum(sizes)[:-1]), filled.learning_rate)
        assert np.array_equal(whole, np.concatenate(cut)), step


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_restored_state_goes_on_to_the_bit(name: str, options: dict[str, Any]) -> None:
    first, values = Optimizer(name, options, SIZE), gradient(100)
    for step in range(5):
        first.step(values, gradient(step))
    second, copied = Optimizer(name, options, SIZE), values.copy()
    second.restore(first.state())
    for step in range(5, 10):
        first.step(values, gradient(step))
        second.step(copied, gradient(step))
    assert np.array_equal(values, copied)
    second.reset()
    assert all(not state.any() for key, state in second.state().items() if key != "sum")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "extras",
    [
        Extras(clip_norm=0.5),
        Extras(l1=0.01),
        Extras(schedule="cosine", schedule_options={"steps": 9, "warmup_steps": 3}),
        Extras(schedule="step", schedule_options={"every": 2}, clip_norm=30.0, l1=0.001),
    ],
)
def test_what_a_step_does_beside_is_the_same_to_the_bit(
    name: str, extras: Extras, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = (3, 2000, 0, 1500, SIZE - 3503)
    monkeypatch.setattr(rule, "BLOCK", CUT)
    sizes = [CUT] * (SIZE // CUT) + [SIZE % CUT] * bool(SIZE % CUT)
    mine = rule.Rule(Optimizer(name, {}, SIZE), tensors, extras)
    choice = catalogue.check_rule(
        catalogue.RuleChoice(
            optimizer=catalogue.Choice(name, {}),
            schedule=catalogue.Choice(extras.schedule, extras.schedule_options),
            clip_norm=extras.clip_norm,
            l1=extras.l1,
        )
    )
    whole = gradient(100)
    theirs = Shards(choice, tensors, blocks_of(sizes), 1, whole)
    for step in range(8):
        mine.step(whole, gradient(step), step)
        theirs.step(gradient(step))
        assert np.array_equal(whole, theirs.values), step


def test_the_state_of_another_optimizer_is_refused() -> None:
    adam = Optimizer("adam", {}, SIZE)
    for state in (Optimizer("adagrad", {}, SIZE).state(), Optimizer("adam", {}, SIZE - 1).state(), {}):
        with pytest.raises(errors.DataLoss, match="another optimizer"):
            adam.restore(state)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(errors.Invalid, match="must be one of adagrad, adam"):
        Optimizer("lamb", {}, SIZE)
