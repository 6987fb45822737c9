"""A step of a whole group: clipped, scheduled, shrunk, gone on from its state; the same on any number of shards."""

import dataclasses
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.lamb import WholeLamb
from tests.support.rules import Shards, blocks_of, rule_choice
from tidemill import plugins
from tidemill.errors import FailedPrecondition
from tidemill.parameters import optimizers
from tidemill.parameters.catalogue import Choice, RuleChoice, check_rule, make_rule
from tidemill.parameters.rule import run
from tidemill.parameters.segments import combine
from tidemill.tensors.blocks import Array

NAMES = plugins.names(optimizers)
TENSORS = (300, 17, 0, 1, 4000, 1100, 64)
"""Elements; borders of tensors are not those of blocks."""
SIZES = (1024, 1024, 1024, 1024, sum(TENSORS) - 4096)
BLOCKS = blocks_of(SIZES)
ELEMENTS = sum(TENSORS)
SCHEDULE = Choice("cosine", {"steps": 40, "minimum": 0.1, "warmup_steps": 5})


def everything(name: str) -> RuleChoice:
    """Every part of a step at once."""
    parameters = {"learning_rate": 0.05}
    return check_rule(RuleChoice(optimizer=Choice(name, parameters), clip_norm=40.0, l1=1e-3, schedule=SCHEDULE))


def first() -> Array:
    return np.random.default_rng(3).standard_normal(ELEMENTS, dtype=np.float32)


def gradients(steps: int, seed: int = 7) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.standard_normal(ELEMENTS, dtype=np.float32) * np.float32(random.random()) for _ in range(steps)]


def trained(choice: RuleChoice, shards: int, steps: int) -> Shards:
    group = Shards(choice, TENSORS, BLOCKS, shards, first())
    for gradient in gradients(steps):
        group.step(gradient)
    return group


def tensors(flat: Array) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.from_numpy(part.copy())) for part in np.split(flat, np.cumsum(TENSORS)[:-1])]


def set_gradients(parameters: list[torch.nn.Parameter], flat: Array) -> None:
    for parameter, part in zip(parameters, np.split(flat, np.cumsum(TENSORS)[:-1]), strict=True):
        parameter.grad = torch.from_numpy(part.copy())


def joined(parameters: list[torch.nn.Parameter]) -> Array:
    return np.concatenate([parameter.detach().numpy() for parameter in parameters])


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_shards_gives_the_same_bits(name: str) -> None:
    one = trained(everything(name), 1, 50)
    for shards in (2, 3):
        many = trained(everything(name), shards, 50)
        assert len(many.rules) == shards
        np.testing.assert_array_equal(many.values, one.values)


@settings(max_examples=25, deadline=None)
@given(st.sampled_from([name for name in NAMES if name != "lamb"]), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_any_cut_gives_the_same_bits_without_sums_over_tensors(name: str, size: int, seed: int) -> None:
    sizes = [min(size, 500 - start) for start in range(0, 500, size)]
    random = np.random.default_rng(seed)
    values = random.standard_normal(500, dtype=np.float32)
    whole, cut = (Shards(rule_choice(name, l1=0.01), [500], blocks_of(pieces), 1, values) for pieces in ([500], sizes))
    for _ in range(3):
        gradient = random.standard_normal(500, dtype=np.float32)
        whole.step(gradient.copy())
        cut.step(gradient)
    np.testing.assert_array_equal(whole.values, cut.values)


@pytest.mark.parametrize(
    ("name", "make", "schedule", "scheduler"),
    [
        ("sgd", torch.optim.SGD, "step", lambda o: torch.optim.lr_scheduler.StepLR(o, 10, gamma=0.5)),
        ("adam", torch.optim.Adam, "exponential", lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9)),
        ("adamw", torch.optim.AdamW, "cosine", lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50)),
        ("adagrad", torch.optim.Adagrad, "linear", lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.5, 50)),
    ],
)
def test_a_schedule_gives_the_bits_of_its_twin(name, make, schedule, scheduler) -> None:  # type: ignore[no-untyped-def]
    parameters: dict[str, dict[str, float]] = {
        "step": {"every": 10, "gamma": 0.5},
        "exponential": {"gamma": 0.9},
        "cosine": {"steps": 50},
        "linear": {"steps": 50, "end": 0.5},
    }
    asked = RuleChoice(optimizer=Choice(name, {"learning_rate": 0.03}), schedule=Choice(schedule, parameters[schedule]))
    ours = trained(check_rule(asked), 2, 50)
    theirs = tensors(first())
    optimizer = make(theirs, lr=0.03)
    rates = scheduler(optimizer)
    for gradient in gradients(50):
        set_gradients(theirs, gradient)
        optimizer.step()
        rates.step()
    np.testing.assert_array_equal(ours.values, joined(theirs))


def test_clips_by_the_norm_over_all_shards_as_torch_does() -> None:
    ours = trained(rule_choice("sgd", learning_rate=0.1, clip_norm=5.0), 2, 20)
    theirs = tensors(first())
    optimizer = torch.optim.SGD(theirs, lr=0.1)
    for gradient in gradients(20):
        set_gradients(theirs, gradient)
        torch.nn.utils.clip_grad_norm_(theirs, 5.0)
        optimizer.step()
    np.testing.assert_allclose(ours.values, joined(theirs), rtol=1e-6, atol=1e-6)
    assert not np.array_equal(ours.values, trained(rule_choice("sgd", learning_rate=0.1), 2, 20).values)


def test_does_not_touch_gradients_that_are_short_enough() -> None:
    clipped = trained(rule_choice("adam", clip_norm=1e6), 2, 5)
    np.testing.assert_array_equal(clipped.values, trained(rule_choice("adam"), 1, 5).values)


def test_lamb_takes_its_norms_over_whole_tensors() -> None:
    choice = rule_choice("lamb", learning_rate=0.01)
    ours = trained(choice, 3, 50)
    theirs = tensors(first())
    optimizer = WholeLamb(theirs, lr=0.01)
    for gradient in gradients(50):
        set_gradients(theirs, gradient)
        optimizer.step()
    np.testing.assert_allclose(ours.values, joined(theirs), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(ours.values, trained(choice, 1, 50).values)


def test_lamb_trusts_a_tensor_of_zeros_fully() -> None:
    group = Shards(rule_choice("lamb", learning_rate=0.5), [4], blocks_of([2, 2]), 2, np.zeros(4, np.float32))
    group.step(np.array([1, -1, 2, 4], np.float32))
    np.testing.assert_allclose(group.values, [-0.5, 0.5, -0.5, -0.5], rtol=1e-5)


def test_l1_is_a_soft_threshold_after_the_step() -> None:
    values = np.array([1.0, -1.0, 0.015, -0.015, 0.0, 0.5], np.float32)
    gradient = np.array([0, 0, 0, 0, 0, 1], np.float32)
    group = Shards(rule_choice("sgd", learning_rate=0.1, l1=0.2), [6], blocks_of([6]), 1, values)
    group.step(gradient)
    stepped = torch.from_numpy(values) - 0.1 * torch.tensor([0, 0, 0, 0, 0, 1.0])
    assert torch.equal(torch.from_numpy(group.values), torch.nn.functional.softshrink(stepped, 0.02))
    assert (group.values[2:5] == 0).all()


def test_says_how_often_it_needs_sums() -> None:
    assert trained(rule_choice("adam"), 2, 1).exchanges == 0
    for name, clip, times in (("adam", 0.0, 0), ("adam", 1.0, 1), ("lamb", 0.0, 1), ("lamb", 1.0, 2)):
        group = trained(rule_choice(name, clip_norm=clip), 2, 3)
        assert group.exchanges == 3 * times
        assert {rule.exchanges for rule in group.rules} == {times}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 2)])
def test_goes_on_from_its_state_on_other_shards(name: str, before: int, after: int) -> None:
    choice = everything(name)
    stopped = trained(choice, before, 20)
    resumed = Shards(choice, TENSORS, BLOCKS, after, stopped.values)
    resumed.restore(stopped.state(), stopped.rules[0].steps)
    assert resumed.rules[0].learning_rate == stopped.rules[0].learning_rate
    for gradient in gradients(40)[20:]:
        resumed.step(gradient)
    np.testing.assert_array_equal(resumed.values, trained(choice, 1, 40).values)


@pytest.mark.parametrize("name", NAMES)
def test_a_guard_holds_each_block_while_it_changes(name: str) -> None:
    rule = make_rule(everything(name), TENSORS, BLOCKS)
    values, held = first(), []

    def guard(at: int) -> AbstractContextManager[object]:
        held.append(at)
        return nullcontext()

    for gradient in gradients(3):
        views = [values[block.slice] for block in BLOCKS]
        step = rule.step(views, [gradient[block.slice] for block in BLOCKS], guard)
        run(step, lambda partials: combine([partials], len(TENSORS)))
    assert held == [0, 1, 2, 3, 4] * 3
    np.testing.assert_array_equal(values, trained(everything(name), 2, 3).values)


def test_a_step_given_up_before_its_norm_is_known_has_changed_nothing() -> None:
    rule = make_rule(rule_choice("adam", clip_norm=1.0), [8], blocks_of([8]))
    values = np.ones(8, np.float32)
    before = rule.state()
    step = rule.step([values], [np.ones(8, np.float32)])
    next(step)
    step.close()
    assert (values == 1).all()
    assert rule.steps == 0
    np.testing.assert_array_equal(rule.state()["exp_avg"], before["exp_avg"])


def test_a_step_given_up_halfway_leaves_nothing_to_go_on_from() -> None:
    rule = make_rule(rule_choice("lamb"), [8], blocks_of([8]))
    values = np.ones(8, np.float32)
    saved = rule.state()
    step = rule.step([values], [np.ones(8, np.float32)])
    next(step)
    step.close()
    for use in (rule.state, lambda: next(rule.step([values], [np.ones(8, np.float32)]))):
        with pytest.raises(FailedPrecondition) as refused:
            use()
        assert refused.value.reason == "STEP_UNFINISHED"
    rule.restore(saved, 0)
    run(rule.step([values], [np.ones(8, np.float32)]), lambda partials: combine([partials], 1))
    assert rule.steps == 1


def test_gradients_beyond_all_bounds_make_no_noise() -> None:
    group = Shards(rule_choice("lamb", clip_norm=1.0, l1=0.1), [8], blocks_of([8]), 1, np.ones(8, np.float32))
    group.step(np.full(8, np.inf, np.float32))
    assert not np.isfinite(group.values).any()


def test_a_choice_says_all_that_it_is() -> None:
    choice = everything("adam")
    assert choice.optimizer.parameters["beta1"] == 0.9
    assert check_rule(choice) == choice
    assert dataclasses.replace(choice, l1=0.0) != choice
