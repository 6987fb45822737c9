"""Specs are checked whole, and every field that is wrong is named."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from tidemill import errors
from tidemill.training.checks import complete
from tidemill.training.spec import (
    Component,
    Consistency,
    Dataset,
    Durability,
    EarlyStopping,
    JobSpec,
    Split,
    Stragglers,
)

GOOD = JobSpec(model=Component(name="mlp"), dataset=Dataset(builtin="iris"))
ARTIFACT = Dataset(artifact="a" * 64)
MANY = {"workers": 2, "shards": 2}
DROP = Stragglers(policy="drop", most=1)
FAIL = Stragglers(policy="fail", after_seconds=30.0)
REDUCED = {"strategy": "all_reduce"}


def test_what_is_left_out_gets_its_default() -> None:
    done = complete(GOOD)
    assert done.model.parameters == {"hidden": [128], "dropout": 0.0, "activation": "relu"}
    assert done.optimizer == Component(name="adam")
    assert (done.workers, done.shards, done.epochs, done.batch_size) == (1, 1, 10, 64)
    assert done.split == Split(validation=0.1, test=0.1)
    assert done.strategy == "parameter_server"
    assert done.max_restarts == 3
    assert complete(replace(GOOD, max_restarts=0)).max_restarts == 0
    assert done.consistency == Consistency(mode="bsp")
    assert done.schedule == Component(name="constant", parameters={"warmup_steps": 0})
    assert done.codec == Component(name="fp32")
    assert done.durability == Durability(mode="none")
    assert complete(done) == done, "what is complete stays as it is"
    assert complete(replace(GOOD, dataset=ARTIFACT)).dataset.label_column == "label"
    arrays = complete(replace(GOOD, dataset=replace(ARTIFACT, format="npz")))
    assert complete(arrays) == arrays


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
        ({"dataset": replace(ARTIFACT, format="npz", text_column="t")}, "spec.dataset.text_column"),
        ({"dataset": replace(ARTIFACT, format="idx", label_column="kind")}, "spec.dataset.label_column"),
        ({"dataset": Dataset(builtin="iris", label_column="kind")}, "spec.dataset.label_column"),
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
        ({"consistency": Consistency(mode="BSP")}, "spec.consistency.mode"),
        ({"consistency": Consistency(staleness=1)}, "spec.consistency.staleness"),
        ({"consistency": Consistency(mode="asp", staleness=1)}, "spec.consistency.staleness"),
        ({"consistency": Consistency(mode="ssp", staleness=-1)}, "spec.consistency.staleness"),
        ({"consistency": Consistency(mode="ssp", staleness=(1 << 20) + 1)}, "spec.consistency.staleness"),
        ({"consistency": Consistency(mode="ssp", staleness=1, arrival_order=True)}, "spec.consistency.arrival_order"),
        ({"consistency": Consistency(mode="asp", arrival_order=True)}, "spec.consistency.arrival_order"),
        ({"schedule": Component(name="base")}, "spec.schedule.name"),
        ({"schedule": Component(name="cosine", parameters={"steps": 0})}, "spec.schedule.parameters.steps"),
        ({"schedule": Component(parameters={"gamma": 1})}, "spec.schedule.parameters.gamma"),
        ({"clip_norm": -1.0}, "spec.clip_norm"),
        ({"clip_norm": float("inf")}, "spec.clip_norm"),
        ({"l1": float("nan")}, "spec.l1"),
        ({"l1": 1e7}, "spec.l1"),
        ({"codec": Component(name="gzip")}, "spec.codec.name"),
        ({"codec": Component(name="topk", parameters={"fraction": 2})}, "spec.codec.parameters.fraction"),
        ({"codec": Component(name="int8", parameters={"bits": 8})}, "spec.codec.parameters.bits"),
        ({"codec": Component(name="auto", parameters={"fraction": 1})}, "spec.codec.parameters.fraction"),
        ({"durability": Durability(mode="always")}, "spec.durability.mode"),
        ({"durability": Durability(fsync=True)}, "spec.durability.fsync"),
        ({"durability": Durability(interval_steps=5)}, "spec.durability.interval_steps"),
        ({**REDUCED, "consistency": Consistency(mode="asp")}, "spec.consistency.mode"),
        ({**REDUCED, "consistency": Consistency(arrival_order=True)}, "spec.consistency.arrival_order"),
        ({**REDUCED, "codec": Component(name="bf16")}, "spec.codec.name"),
        ({**REDUCED, "codec": Component(name="auto")}, "spec.codec.name"),
        ({"durability": Durability(mode="checkpoint", interval_steps=-1)}, "spec.durability.interval_steps"),
        ({"durability": Durability(mode="replicated"), "shards": 1}, "spec.shards"),
        (
            {"durability": Durability(mode="checkpoint"), "consistency": Consistency(mode="asp"), "shards": 2},
            "spec.durability.mode",
        ),
        ({**REDUCED, "durability": Durability(mode="wal")}, "spec.durability.mode"),
        ({**REDUCED, "schedule": Component(name="sine")}, "spec.schedule.name"),
        ({"stragglers": Stragglers(policy="hope")}, "spec.stragglers.policy"),
        ({**REDUCED, "workers": 2, "stragglers": DROP}, "spec.stragglers.policy"),
        ({"workers": 2, "stragglers": DROP, "consistency": Consistency(mode="asp")}, "spec.stragglers.policy"),
        ({"stragglers": FAIL, "consistency": Consistency(mode="ssp", staleness=1)}, "spec.stragglers.policy"),
        ({"workers": 2, "stragglers": DROP, "durability": Durability(mode="replicated")}, "spec.stragglers.policy"),
        ({"stragglers": FAIL, "durability": Durability(mode="replicated")}, "spec.stragglers.policy"),
        ({"workers": 2, "stragglers": DROP, "consistency": Consistency(arrival_order=True)}, "spec.stragglers.policy"),
        ({"workers": 1, "stragglers": DROP}, "spec.stragglers.policy"),
        ({**MANY, "optimizer": Component(name="lamb"), "stragglers": DROP}, "spec.stragglers.policy"),
        ({"workers": 2, "stragglers": replace(DROP, most=2)}, "spec.stragglers.most"),
        ({"workers": 2, "stragglers": replace(DROP, most=0)}, "spec.stragglers.most"),
        ({"stragglers": replace(FAIL, most=1)}, "spec.stragglers.most"),
        ({"stragglers": Stragglers(most=1)}, "spec.stragglers.most"),
        ({"stragglers": Stragglers(policy="fail")}, "spec.stragglers.after_seconds"),
        ({"stragglers": Stragglers(after_seconds=1.0)}, "spec.stragglers.after_seconds"),
        ({"stragglers": replace(FAIL, after_seconds=float("inf"))}, "spec.stragglers.after_seconds"),
        ({"workers": 2, "stragglers": replace(DROP, after_seconds=-1.0)}, "spec.stragglers.after_seconds"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(errors.Invalid) as wrong:
        complete(replace(GOOD, **fields))
    assert list(wrong.value.violations) == [named], wrong.value.message
    assert wrong.value.message.startswith(f"{named}: ")


def test_what_belongs_together_is_taken() -> None:
    for way in (Consistency(mode="ssp", staleness=3), Consistency(mode="asp"), Consistency(arrival_order=True)):
        assert complete(replace(GOOD, consistency=way)).consistency == replace(way, mode=way.mode or "bsp")
    for codec in ("fp32", "fp16", "bf16", "int8", "topk", "auto"):
        assert complete(replace(GOOD, codec=Component(name=codec))).codec.name == codec
    assert complete(replace(GOOD, codec=Component(name="topk"))).codec.parameters == {"fraction": 0.01}
    cosine = Component(name="cosine", parameters={"steps": 7})
    reduced = complete(replace(GOOD, strategy="all_reduce", schedule=cosine, clip_norm=1.0, l1=0.5, shards=3))
    assert reduced.schedule.parameters == {"steps": 7, "minimum": 0.0, "warmup_steps": 0}
    assert (reduced.clip_norm, reduced.l1, reduced.shards) == (1.0, 0.5, 0)


def test_what_becomes_of_late_workers_is_taken() -> None:
    assert complete(GOOD).stragglers == Stragglers(policy="wait")
    for policy in (DROP, replace(DROP, most=2, after_seconds=0.5), FAIL):
        for way in (Consistency(), Consistency(mode="ssp")):
            done = complete(replace(GOOD, workers=3, stragglers=policy, consistency=way))
            assert done.stragglers == policy
    assert complete(replace(GOOD, stragglers=FAIL, consistency=Consistency(arrival_order=True))).stragglers == FAIL


def test_what_outlives_a_shard_is_taken() -> None:
    for kept in (Durability(mode="wal"), Durability(mode="wal", fsync=True), Durability(mode="replicated")):
        assert complete(replace(GOOD, durability=kept)).durability == kept
    often = complete(replace(GOOD, durability=Durability(mode="checkpoint"))).durability
    assert often == Durability(mode="checkpoint", interval_steps=100)
    assert complete(replace(GOOD, durability=Durability(mode="replicated"))).shards == 2


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
