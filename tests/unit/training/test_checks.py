"""Specs are checked whole, and every field that is wrong is named."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from tidemill import errors
from tidemill.training.checks import complete
from tidemill.training.spec import Component, Dataset, EarlyStopping, JobSpec, Split

GOOD = JobSpec(model=Component(name="mlp"), dataset=Dataset(builtin="iris"))
ARTIFACT = Dataset(artifact="a" * 64)


def test_what_is_left_out_gets_its_default() -> None:
    done = complete(GOOD)
    assert done.model.parameters == {"hidden": [128], "dropout": 0.0, "activation": "relu"}
    assert done.optimizer == Component(name="adam")
    assert (done.workers, done.shards, done.epochs, done.batch_size) == (1, 1, 10, 64)
    assert done.split == Split(validation=0.1, test=0.1)
    assert done.strategy == "parameter_server"
    assert done.max_restarts == 3
    assert complete(replace(GOOD, max_restarts=0)).max_restarts == 0
    assert complete(done) == done, "what is complete stays as it is"
    assert complete(replace(GOOD, dataset=ARTIFACT)).dataset.label_column == "label"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": Component()}, "spec.model.name"),
        ({"model": Component(name="base")}, "spec.model.name"),
        ({"model": Component(name="../mlp")}, "spec.model.name"),
        ({"model": Component(name="mlp", parameters={"depth": 1})}, "spec.model.parameters.depth"),
        ({"model": Component(name="mlp", parameters={"dropout": 2})}, "spec.model.parameters.dropout"),
        ({"model": Component(name="mlp", parameters={"dropout": "much"})}, "spec.model.parameters.dropout"),
        ({"model": Component(name="mlp", parameters={"activation": "sin"})}, "spec.model.parameters.activation"),
        ({"model": Component(name="cnn", parameters={"channels": []})}, "spec.model.parameters.channels"),
        ({"model": Component(name="cnn")}, "spec.model"),
        ({"dataset": Dataset()}, "spec.dataset"),
        ({"dataset": Dataset(builtin="mnist")}, "spec.dataset.builtin"),
        ({"dataset": Dataset(builtin="iris", format="csv")}, "spec.dataset.format"),
        ({"dataset": Dataset(artifact="a")}, "spec.dataset.artifact"),
        ({"dataset": replace(ARTIFACT, format="pickle")}, "spec.dataset.format"),
        ({"dataset": replace(ARTIFACT, format="builtin")}, "spec.dataset.format"),
        ({"dataset": replace(ARTIFACT, text_column="label")}, "spec.dataset.text_column"),
        ({"dataset": replace(ARTIFACT, label_column="x\ny")}, "spec.dataset.label_column"),
        ({"split": Split(validation=0.6)}, "spec.split.validation"),
        ({"split": Split(test=-0.1)}, "spec.split.test"),
        ({"split": Split(validation=0.5, test=0.5)}, "spec.split"),
        ({"split": Split(validation=float("nan"))}, "spec.split.validation"),
        ({"optimizer": Component(name="a/b")}, "spec.optimizer.name"),
        ({"strategy": "gossip"}, "spec.strategy"),
        ({"workers": 65}, "spec.workers"),
        ({"workers": -1}, "spec.workers"),
        ({"shards": 65}, "spec.shards"),
        ({"epochs": 10_001}, "spec.epochs"),
        ({"batch_size": (1 << 20) + 1}, "spec.batch_size"),
        ({"early_stopping": EarlyStopping(patience=-1)}, "spec.early_stopping.patience"),
        ({"early_stopping": EarlyStopping(min_delta=-1)}, "spec.early_stopping.min_delta"),
        ({"register_as": "digits"}, "spec.register_as"),
        ({"register_as": "models/a/b"}, "spec.register_as"),
        ({"register_as": "models/.."}, "spec.register_as"),
        ({"alias": "champion"}, "spec.alias"),
        ({"register_as": "models/a", "alias": "7"}, "spec.alias"),
        ({"register_as": "models/a", "alias": "a b"}, "spec.alias"),
        ({"max_restarts": 101}, "spec.max_restarts"),
        ({"max_restarts": -1}, "spec.max_restarts"),
        ({"code_revision": "x" * 129}, "spec.code_revision"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(errors.Invalid) as wrong:
        complete(replace(GOOD, **fields))
    assert list(wrong.value.violations) == [named], wrong.value.message
    assert wrong.value.message.startswith(f"{named}: ")


def test_everything_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(errors.Invalid) as wrong:
        complete(JobSpec(workers=100, epochs=-1))
    assert set(wrong.value.violations) == {"spec.model.name", "spec.dataset", "spec.workers", "spec.epochs"}


def test_checking_needs_no_torch() -> None:
    code = (
        "import sys; from tidemill.training.checks import complete; from tidemill.training.spec import *; "
        "complete(JobSpec(model=Component(name='cnn'), dataset=Dataset(builtin='digits'))); "
        "assert not {'torch', 'sklearn', 'onnx', 'onnxruntime'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
