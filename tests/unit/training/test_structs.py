"""Hyperparameters as they come over the wire."""

import math

import pytest
from google.protobuf.struct_pb2 import Struct

from tidemill.errors import Invalid
from tidemill.training.convert import from_struct


def test_numbers_texts_lists_and_nothing() -> None:
    struct = Struct()
    struct.update({"a": 3.0, "b": 0.5, "c": "x", "d": [1.0, 2.5], "e": True, "f": None, "g": {"h": 1.0}})
    assert from_struct(struct) == {"a": 3, "b": 0.5, "c": "x", "d": [1, 2.5], "e": True, "f": None, "g": {"h": 1}}


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_does_not_know_is_refused_with_its_place(number: float) -> None:
    struct = Struct()
    struct.fields["rates"].list_value.values.add().number_value = number
    with pytest.raises(Invalid) as error:
        from_struct(struct)
    assert list(error.value.violations) == ["parameters.rates[0]"]
