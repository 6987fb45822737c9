"""What a step can be made of is checked by name, type and range before anything is made."""

import pytest

from tidemill.errors import Invalid
from tidemill.parameters import catalogue
from tidemill.parameters.catalogue import Choice, RuleChoice

SGD = Choice("sgd", {})


def test_fills_in_what_is_not_given() -> None:
    found = catalogue.check_rule(RuleChoice(optimizer=SGD))
    assert found.schedule == Choice("constant", {"warmup_steps": 0})
    assert found.optimizer == catalogue.check("sgd", {})
    assert (found.clip_norm, found.l1) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (RuleChoice(optimizer=Choice("lion", {})), "optimizer"),
        (RuleChoice(optimizer=Choice("sgd", {"speed": 1})), "optimizer.parameters.speed"),
        (RuleChoice(optimizer=SGD, schedule=Choice("cyclic", {})), "schedule"),
        (RuleChoice(optimizer=SGD, schedule=Choice("step", {"every": 0})), "schedule.parameters.every"),
        (RuleChoice(optimizer=SGD, clip_norm=-1), "rule.clip_norm"),
        (RuleChoice(optimizer=SGD, clip_norm=float("nan")), "rule.clip_norm"),
        (RuleChoice(optimizer=SGD, l1=-0.5), "rule.l1"),
        (RuleChoice(optimizer=SGD, l1=float("inf")), "rule.l1"),
    ],
)
def test_names_the_field_that_is_wrong(asked: RuleChoice, field: str) -> None:
    with pytest.raises(Invalid) as refused:
        catalogue.check_rule(asked)
    assert field in refused.value.violations


def test_state_depends_on_the_hyperparameters() -> None:
    def states(name: str, **parameters: object) -> int:
        return catalogue.states(catalogue.check(name, parameters))

    assert [states("rmsprop"), states("rmsprop", centered=True), states("rmsprop", centered=True, momentum=0.5)] == [
        1,
        2,
        3,
    ]
    assert [states("sgd"), states("momentum"), states("adam"), states("lamb")] == [0, 1, 2, 2]
