"""Declared and found signatures."""

import pytest

from tidemill.inference.signatures import Signature, TensorSpec, contradiction
from tidemill.tensors.dtypes import DataType


def signature(name: str = "x", kind: DataType = DataType.FP32, shape: tuple[int, ...] = (-1, 4)) -> Signature:
    return Signature((TensorSpec(name, kind, shape),), (TensorSpec("y", DataType.FP32, (-1,)),))


@pytest.mark.parametrize(
    "other", [signature(), signature(shape=(8, 4)), signature(shape=(-1, -1)), signature(shape=())]
)
def test_agree(other: Signature) -> None:
    assert contradiction(signature(), other) == ""
    assert contradiction(other, signature()) == ""


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (signature("z"), "inputs are ['z'], but the version declares ['x']"),
        (signature(kind=DataType.FP64), "input 'x' is FP64, but the version declares FP32"),
        (signature(shape=(-1, 5)), "input 'x' has shape [-1, 5], but the version declares [-1, 4]"),
        (signature(shape=(-1, 4, 1)), "input 'x' has shape [-1, 4, 1], but the version declares [-1, 4]"),
    ],
)
def test_contradict(other: Signature, text: str) -> None:
    assert contradiction(signature(), other) == text
