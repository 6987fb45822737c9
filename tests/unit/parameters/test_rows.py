"""Steps for the touched rows of a table alone, with state that waits for its rows."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.support.rules import Shards, blocks_of, rule_choice
from tidemill import plugins
from tidemill.errors import Invalid
from tidemill.parameters import optimizers
from tidemill.parameters.catalogue import Choice, RuleChoice, check_rule, make_rule
from tidemill.parameters.rows import Rows, mean
from tidemill.tensors.blocks import Array

ROWS, WIDTH, OTHERS = 40, 8, 50
"""A table, and a tensor beside it that gets whole gradients."""
SIZES = (15 * WIDTH, 15 * WIDTH, 10 * WIDTH, OTHERS)
BLOCKS = blocks_of(SIZES)
TENSORS = (ROWS * WIDTH, OTHERS)
STEPS = 30
SPARSE = ["sgd", "momentum", "nesterov", "adagrad", "adam"]


def first() -> Array:
    return np.random.default_rng(3).standard_normal(sum(TENSORS), dtype=np.float32)


def drawn(steps: int = STEPS) -> Iterator[tuple[Array, Array, Array]]:
    """Of each step the touched rows, their gradients, and those of the other tensor."""
    random = np.random.default_rng(11)
    for _ in range(steps):
        touched = np.flatnonzero(random.random(ROWS) < 0.2)
        yield (
            touched,
            random.standard_normal((len(touched), WIDTH), dtype=np.float32),
            random.standard_normal(OTHERS, dtype=np.float32),
        )


def blockwise(touched: Array, gradients: Array, others: Array) -> dict[int, Array | Rows]:
    found: dict[int, Array | Rows] = {3: others.copy()}
    for block in BLOCKS[:3]:
        start, count = block.offset // WIDTH, block.elements // WIDTH
        inside = (touched >= start) & (touched < start + count)
        found[block.index] = Rows(touched[inside] - start, gradients[inside].copy())
    return found


def trained(choice: RuleChoice, shards: int = 1, steps: int = STEPS) -> Shards:
    group = Shards(choice, TENSORS, BLOCKS, shards, first())
    for step in drawn(steps):
        group.step(blockwise(*step))
    return group


def table(flat: Array) -> torch.Tensor:
    return torch.from_numpy(flat[: ROWS * WIDTH].copy()).reshape(ROWS, WIDTH)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.05)),
        ("adagrad", lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1)),
        ("adam", lambda p: torch.optim.SparseAdam(p, lr=0.05)),
    ],
)
def test_gives_what_torch_gives_for_sparse_gradients(name, make) -> None:  # type: ignore[no-untyped-def]
    extra = {"learning_rate_decay": 0.1} if name == "adagrad" else {}
    ours = trained(rule_choice(name, learning_rate=0.05, **extra))
    parameter = torch.nn.Parameter(table(first()))
    optimizer = make([parameter])
    with torch.sparse.check_sparse_tensor_invariants():  # type: ignore[no-untyped-call]
        for touched, gradients, _ in drawn():
            parameter.grad = torch.sparse_coo_tensor(
                torch.from_numpy(touched[None]), torch.from_numpy(gradients), (ROWS, WIDTH), is_coalesced=True
            )
            optimizer.step()
    np.testing.assert_allclose(table(ours.values), parameter.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["momentum", "nesterov"])
def test_a_row_with_momentum_lives_in_a_time_of_its_own(name: str) -> None:
    ours = trained(rule_choice(name, learning_rate=0.05))
    rows = [torch.nn.Parameter(row.clone()) for row in table(first())]
    twins = [torch.optim.SGD([row], lr=0.05, momentum=0.9, nesterov=name == "nesterov") for row in rows]
    for touched, gradients, _ in drawn():
        for row, gradient in zip(touched, gradients, strict=True):
            rows[row].grad = torch.from_numpy(gradient.copy())
            twins[row].step()
    assert torch.equal(table(ours.values), torch.stack([row.detach() for row in rows]))


@pytest.mark.parametrize("name", SPARSE)
def test_the_other_tensors_get_the_steps_they_always_get(name: str) -> None:
    beside = trained(rule_choice(name)).values[ROWS * WIDTH :]
    alone = Shards(rule_choice(name), [OTHERS], blocks_of([OTHERS]), 1, first()[ROWS * WIDTH :])
    for _, _, others in drawn():
        alone.step(others)
    np.testing.assert_array_equal(beside, alone.values)


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("fused", [False, True])
def test_is_the_same_on_any_number_of_shards(name: str, fused: bool) -> None:
    optimizer = Choice(name, {"fused": fused})
    choice = check_rule(RuleChoice(optimizer=optimizer, clip_norm=3.0, l1=0.01), sparse=True)
    one = trained(choice)
    for shards in (2, 3):
        np.testing.assert_array_equal(trained(choice, shards).values, one.values)


@pytest.mark.parametrize("name", SPARSE)
def test_rows_that_are_not_touched_keep_values_and_state(name: str) -> None:
    group = trained(rule_choice(name, l1=0.1), steps=5)
    values, state = group.values.copy(), group.state()
    step = {**blockwise(np.array([3]), np.ones((1, WIDTH), np.float32), np.zeros(OTHERS, np.float32))}
    group.step(step)
    same = (table(group.values) == table(values)).all(dim=1)
    assert same.nonzero().ravel().tolist() == [row for row in range(ROWS) if row != 3]
    for tensor, blocks in group.state().items():
        for index in (0, 1, 2):
            before, after = state[tensor][index], blocks[index]
            assert before is not None
            assert after is not None
            if before.size > 1:
                changed = (before != after).reshape(-1, WIDTH).any(axis=1)
                assert set(np.flatnonzero(changed)) <= ({3} if index == 0 else set())


@pytest.mark.parametrize("name", SPARSE)
def test_goes_on_from_its_state(name: str) -> None:
    choice = rule_choice(name)
    stopped = trained(choice, steps=10)
    resumed = Shards(choice, TENSORS, BLOCKS, 3, stopped.values)
    resumed.restore(stopped.state(), stopped.rules[0].steps)
    for step in list(drawn())[10:]:
        resumed.step(blockwise(*step))
    np.testing.assert_array_equal(resumed.values, trained(choice).values)


@pytest.mark.parametrize("name", sorted({*plugins.names(optimizers)} - {*SPARSE}))
def test_an_optimizer_that_changes_all_rows_takes_no_rows(name: str) -> None:
    with pytest.raises(Invalid) as refused:
        check_rule(RuleChoice(optimizer=Choice(name, {})), sparse=True)
    assert refused.value.reason == "NO_SPARSE"
    rule = make_rule(rule_choice(name), [8], blocks_of([8]))
    with pytest.raises(Invalid) as refused:
        next(rule.step([np.ones(8, np.float32)], [Rows(np.array([0]), np.ones((1, 4), np.float32))]))
    assert refused.value.reason == "NO_SPARSE"
    assert rule.steps == 0
    rule.state()


@pytest.mark.parametrize(
    ("name", "parameters"),
    [*((name, {"weight_decay": 0.1}) for name in SPARSE), ("momentum", {"dampening": 0.1})],
)
def test_what_reaches_rows_without_gradients_takes_no_rows(name: str, parameters: dict[str, float]) -> None:
    check_rule(RuleChoice(optimizer=Choice(name, {})), sparse=True)
    with pytest.raises(Invalid) as refused:
        check_rule(RuleChoice(optimizer=Choice(name, parameters)), sparse=True)
    assert refused.value.reason == "NO_SPARSE"


ONES = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    ("indices", "gradients"),
    [
        (np.array([1, 0]), ONES),
        (np.array([1, 1]), ONES),
        (np.array([-1, 0]), ONES),
        (np.array([1]), ONES),
        (np.array([0, 1], np.int32), ONES),
        (np.array([0, 1]), ONES.astype(np.float64)),
        (np.array([0, 1]), ONES[:, 0]),
        (np.array([0, 1]), ONES[:, :0]),
    ],
    ids=["order", "twice", "negative", "missing", "int32", "float64", "vector", "narrow"],
)
def test_rows_that_are_none_are_refused(indices: Array, gradients: Array) -> None:
    with pytest.raises(Invalid):
        Rows(indices, gradients)


@pytest.mark.parametrize(("last", "width"), [(2, 4), (1, 3)], ids=["beyond", "uneven"])
def test_rows_of_another_block_are_refused_before_anything_changes(last: int, width: int) -> None:
    rule = make_rule(rule_choice("sgd"), [8, 8], blocks_of([8, 8]))
    values = np.ones((2, 8), np.float32)
    wrong = Rows(np.array([0, last]), np.ones((2, width), np.float32))
    with pytest.raises(Invalid):
        next(rule.step(list(values), [np.ones(8, np.float32), wrong]))
    assert (values == 1).all()
    assert rule.steps == 0


def test_the_mean_of_rows_is_that_of_whole_gradients() -> None:
    random = np.random.default_rng(2)
    rows, expected = [], np.zeros((ROWS, WIDTH), np.float32)
    for count in (3, 5, 1):
        touched = np.flatnonzero(random.random(ROWS) < 0.4)
        gradients = random.standard_normal((len(touched), WIDTH), dtype=np.float32)
        rows.append((count, Rows(touched, gradients.copy())))
        full = np.zeros((ROWS, WIDTH), np.float32)
        full[touched] = gradients
        expected += full * np.float32(count / 9)
    found = mean(rows)
    spread = np.zeros((ROWS, WIDTH), np.float32)
    spread[found.indices] = found.gradients
    np.testing.assert_array_equal(spread, expected)
    assert set(found.indices) == {int(i) for _, one in rows for i in one.indices}
    assert mean(rows[:1]) is rows[0][1]
