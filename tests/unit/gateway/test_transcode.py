"""Protobuf JSON in and out."""

import contextlib
import json
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill import errors
from tidemill.api.artifacts.v1 import artifacts_pb2
from tidemill.api.registry.v1 import registry_pb2
from tidemill.api.training.v1 import training_pb2
from tidemill.gateway.transcode import line, merge

MESSAGES: list[type[Message]] = [
    training_pb2.JobSpec,
    registry_pb2.ModelVersion,
    artifacts_pb2.Artifact,
    registry_pb2.Instance,
]


def test_names_are_those_of_the_proto_and_empty_fields_are_there() -> None:
    upload = artifacts_pb2.Upload(name="uploads/u", size=2**53 + 1, state=artifacts_pb2.Upload.STATE_ACTIVE)
    upload.expire_time.FromJsonString("2026-01-02T03:04:05Z")
    assert json.loads(line(upload)) == {
        "name": "uploads/u",
        "sha256": "",
        "size": "9007199254740993",
        "offset": "0",
        "state": "STATE_ACTIVE",
        "expire_time": "2026-01-02T03:04:05Z",
    }


def test_a_line_is_one_line() -> None:
    assert "\n" not in line(training_pb2.LogLine(text="a\nb\r\u2028c"))


@pytest.mark.parametrize(
    "value",
    [
        {"code_revision": "r", "batch_size": 3, "seed": 7},
        {"codeRevision": "r", "batchSize": "3", "seed": "7"},
        {"code_revision": "r", "batch_size": 3.0, "seed": 7, "alias": None},
    ],
)
def test_both_spellings_and_both_forms_of_numbers_are_taken(value: Any) -> None:
    spec = training_pb2.JobSpec()
    merge(value, spec)
    assert spec == training_pb2.JobSpec(code_revision="r", batch_size=3, seed=7)


names = st.sampled_from(
    [field.name for kind in MESSAGES for field in kind.DESCRIPTOR.fields] + ["parameters", "@type", "[x]"]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names | st.text(max_size=3), inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None, max_examples=300)
@given(kind=st.sampled_from(MESSAGES), value=st.dictionaries(names, values, max_size=4))
def test_any_object_fits_or_is_invalid(kind: type[Message], value: Any) -> None:
    with contextlib.suppress(errors.Invalid):
        message = kind()
        merge(value, message)
        line(message)
