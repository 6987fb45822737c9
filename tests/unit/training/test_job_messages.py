"""Messages and stored records keep everything."""

import json
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from tidemill import errors, records
from tidemill.api.training.v1 import training_pb2 as pb
from tidemill.training import convert
from tidemill.training.epochs import Epoch, Metrics, Result
from tidemill.training.jobs import Change, Job, Progress, Resize, State, Worker
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
from tidemill.training.worker.task import Task

SPEC = JobSpec(
    model=Component(name="mlp", parameters={"hidden": [1, 2], "dropout": 0.5, "activation": "relu", "flag": True}),
    dataset=Dataset(artifact="a" * 64, format="csv", label_column="y", text_column="x"),
    split=Split(validation=0.2, test=0.3),
    optimizer=Component(name="adam", parameters={"learning_rate": 0.001}),
    strategy="parameter_server",
    workers=2,
    shards=3,
    epochs=4,
    batch_size=5,
    seed=-6,
    early_stopping=EarlyStopping(patience=7, min_delta=0.125),
    register_as="models/m",
    alias="champion",
    max_restarts=0,
    code_revision="r",
    checkpoint_steps=8,
    consistency=Consistency(mode="ssp", staleness=9, arrival_order=True),
    schedule=Component(name="cosine", parameters={"steps": 10}),
    clip_norm=0.25,
    l1=0.0625,
    codec=Component(name="topk", parameters={"fraction": 0.5}),
    durability=Durability(mode="wal", fsync=True, interval_steps=11),
    stragglers=Stragglers(policy="drop", most=12, after_seconds=1.5),
)
EPOCH = Epoch(
    epoch=1,
    train_loss=0.1,
    validation=Metrics(loss=0.2, accuracy=0.3, precision=0.4, recall=0.5, f1=0.6, samples=7),
    samples=8,
    seconds=9.5,
    checkpoint="c" * 64,
    best=True,
    reported=1234.5,
)
RESULT = Result(
    artifact="a" * 64, model_version="models/m/versions/1", best_epoch=1, test=EPOCH.validation, parity=0.5,
    dataset_digest="d" * 64, logs="e" * 64, signature="{}", test_samples="f" * 64,
)  # fmt: skip
JOB = Job(
    id="a", uid="u", spec=SPEC, state=State.FAILED, error="e", waiting="w",
    progress=Progress(epoch=1, epochs=2, step=3, steps_per_epoch=4, samples=5, loss=0.5, samples_per_second=7.5),
    epochs=(EPOCH,), result=RESULT, workers=(Worker(rank=1, attempt=2, pid=3, step=4, heartbeat=5.25, phase="p"),),
    restarts=6, traceparent="t", created=1.5, started=2.5, ended=3.5, owner="o", shards=("s:1",), committed=True,
    finished=1, changes=(Change(number=3, state=State.FAILED, time=3.5, epochs=1),),
    nonce="n", request="r", fingerprint="f", revision=9, traceback="b", checkpoint="c" * 64, checkpoint_step=7,
    checkpoint_samples=70, placement=2, held=True, resize=Resize(workers=3, shards=2, places=("s:1", "s:2")),
)  # fmt: skip


def test_specs_epochs_results_and_orders_survive_the_way_there_and_back() -> None:
    assert convert.from_spec(convert.to_spec(SPEC)) == SPEC
    assert convert.from_spec(convert.to_spec(JobSpec())) == JobSpec()
    builtin = replace(SPEC, dataset=Dataset(builtin="iris"), max_restarts=None)
    assert convert.from_spec(convert.to_spec(builtin)) == builtin
    assert convert.from_epoch(convert.to_epoch(EPOCH)) == EPOCH
    assert convert.from_result(convert.to_result(RESULT)) == RESULT
    task = Task(
        job="jobs/a", spec=SPEC, rank=1, attempt=2, group="groups/g", shards=("a:1", "b:2"), traceparent="t",
        artifacts="c:3", epochs=(EPOCH,), checkpoint="c" * 64, placement=3,
    )  # fmt: skip
    assert convert.from_task(convert.to_task(task)) == task


def test_a_message_shows_the_whole_spec() -> None:
    given = convert.to_spec(replace(SPEC, max_restarts=1))
    message = json_format.MessageToDict(given, preserving_proto_field_name=True)
    assert message.keys() == {field.name for field in pb.JobSpec.DESCRIPTOR.fields}, "no field is left out"


def test_a_message_shows_the_whole_job() -> None:
    message = json_format.MessageToDict(convert.to_job(JOB), preserving_proto_field_name=True)
    fields = {field.name for field in pb.Job.DESCRIPTOR.fields}
    assert message.keys() == fields, "no field is left out"
    assert message["etag"] == '"9"'
    assert message["state"] == "STATE_FAILED"
    for state in State:
        number = convert.to_job(replace(JOB, state=state)).state
        assert convert.from_state(number) is state
    assert convert.from_state(0) is None
    with pytest.raises(errors.Invalid):
        convert.from_state(99)


def test_records_survive_the_way_there_and_back() -> None:
    assert records.decode(Job, records.encode(JOB)) == JOB
    kept = records.decode(Job, records.encode(JOB, leave_out=frozenset({"epochs", "revision"})))
    assert kept == replace(JOB, epochs=(), revision=0)


def test_records_of_other_releases_can_be_read() -> None:
    values = json.loads(records.encode(JOB))
    values["colour"] = "red"
    del values["waiting"]
    assert records.decode(Job, json.dumps(values).encode()) == replace(JOB, waiting="")
    for broken in (b"", b"{", b"[]", b'{"id": "a"}', b'{"state": "asleep"}'):
        with pytest.raises(errors.DataLoss):
            records.decode(Job, broken)


SIMPLE = st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


@given(st.recursive(SIMPLE, lambda inner: st.lists(inner, max_size=3)))
def test_hyperparameters_of_any_kind_arrive(value: Any) -> None:
    message = pb.JobSpec()
    message.model.parameters.update({"x": value})
    assert convert.from_spec(message).model.parameters == {"x": value}


def test_signatures_are_checked() -> None:
    text = '{"inputs": [{"name": "x", "dtype": "DATA_TYPE_FP32", "shape": ["-1", 8]}], "labels": ["a"]}'
    assert convert.from_signature(text, "f").inputs[0].shape == [-1, 8]
    assert not convert.from_signature("", "f").inputs
    for wrong in ("{", '{"colour": 1}', '{"inputs": 3}'):
        with pytest.raises(errors.Invalid) as refused:
            convert.from_signature(wrong, "result.signature")
        assert list(refused.value.violations) == ["result.signature"]
