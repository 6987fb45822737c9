"""Stored records come back as they were, and those of other releases are understood or refused."""

import json

import pytest

from tidemill.errors import DataLoss, FailedPrecondition
from tidemill.registry.models import Alias, Draft, EventType, Lineage, Model, ModelVersion, Signature, TensorSpec
from tidemill.registry.records import FORMAT, EventRecord, Head, decode, decode_head, encode, kind_of, plain
from tidemill.tensors.dtypes import DataType

SPEC = TensorSpec(name="x", dtype=DataType.BF16, shape=(-1, 28))
FULL = ModelVersion(
    model="m",
    version=3,
    draft=Draft(
        format="onnx",
        artifact="a" * 64,
        signature=Signature(inputs=(SPEC,), labels=("ä", "\0", '"')),
        lineage=Lineage(job="jobs/j", dataset_digests=("b" * 64,)),
        metrics={"m": 1.0, "tiny": 5e-324},
        tags={"k": "v"},
    ),
    aliases=("a",),
    revision=7,
    create_time=1_700_000_000_000_000,
)


@pytest.mark.parametrize(
    "record",
    [
        FULL,
        ModelVersion(model="m", version=1, draft=Draft(format="onnx", artifact="a" * 64)),
        Model(model="m", tags={"a": "☝"}),
        Alias(model="m", alias="a", version=1),
        Head(revision=2**62, oldest=5),
    ],
    ids=lambda record: type(record).__name__,
)
def test_what_is_stored_comes_back(record: object) -> None:
    assert decode(type(record), encode(record)) == record


def test_an_event_holds_its_resource() -> None:
    record = EventRecord(
        revision=1, time=2, type=EventType.UPDATED, kind=kind_of(FULL), resource=plain(FULL), nonce="n"
    )
    event = decode(EventRecord, encode(record)).event()
    assert (event.revision, event.time, event.type, event.resource) == (1, 2, EventType.UPDATED, FULL)


def test_unknown_fields_are_ignored_and_missing_ones_get_their_default() -> None:
    stored = json.dumps({"model": "m", "of_a_later_release": {"a": [1]}}).encode()
    assert decode(Model, stored) == Model(model="m")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b"\xff", b'{"model": "m", "version": 1, "draft": 3}', b'{"model": 1}']
)
def test_damage_is_data_loss(data: bytes) -> None:
    with pytest.raises(DataLoss):
        decode(ModelVersion, data)


def test_the_store_of_a_newer_release_is_refused() -> None:
    assert decode_head(None) == Head(format=FORMAT, revision=0, oldest=1)
    with pytest.raises(FailedPrecondition) as refused:
        decode_head(encode(Head(format=FORMAT + 1)))
    assert refused.value.reason == "DATA_VERSION_NEWER"
