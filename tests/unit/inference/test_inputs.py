"""Tensors of requests against a signature: exact texts, and nothing allocated for lies."""

import tracemalloc

import numpy as np
import pytest

from tidemill.errors import Invalid
from tidemill.inference.inputs import MAX_TENSORS, InputTensor, bind, wanted
from tidemill.inference.signatures import FREE, Signature, TensorSpec
from tidemill.tensors.dtypes import DataType

A = TensorSpec("a", DataType.FP32, (FREE, 4))
B = TensorSpec("b", DataType.INT8, (2,))
TWO = Signature((A, B), (TensorSpec("y", DataType.FP32, (FREE, 4)), TensorSpec("z", DataType.FP32, ())))


def raw(name: str, datatype: str, shape: tuple[int, ...], size: int) -> InputTensor:
    return InputTensor(name, datatype, shape, bytes(size))


GOOD = [raw("a", "FP32", (2, 4), 32), raw("b", "INT8", (2,), 2)]


def signature(datatype: DataType, *shape: int) -> Signature:
    return Signature((TensorSpec("x", datatype, shape),), (TensorSpec("y", datatype, shape),))


def test_good_inputs_become_arrays_without_a_copy() -> None:
    data = np.arange(8, dtype=np.float32).tobytes()
    bound = bind([InputTensor("a", "FP32", (2, 4), data), GOOD[1]], TWO, "m")
    assert bound["a"].shape == (2, 4)
    assert bound["a"][1, 3] == 7
    assert not bound["a"].flags.owndata
    assert bound["b"].dtype == np.int8


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        (
            [],
            "expected 2 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing required input(s) "
            "['a','b']. Please provide all required input(s).",
        ),
        (
            GOOD[:1],
            "expected 2 inputs but got 1 inputs for model 'm'. Got input(s) ['a'], but missing required input(s) "
            "['b']. Please provide all required input(s).",
        ),
        ([*GOOD, raw("c", "FP32", (1,), 4)], "unexpected inference input 'c' for model 'm'"),
        ([*GOOD, GOOD[0]], "input 'a' already exists in request"),
        (
            [raw("a", "FP64", (2, 4), 64)],
            "inference input 'a' data-type is 'FP64', but model 'm' expects 'FP32'",
        ),
        ([raw("a", "", (2, 4), 32)], "inference input 'a' data-type is '', but model 'm' expects 'FP32'"),
        ([raw("a", "FP32", (2, 5), 40)], "unexpected shape for input 'a' for model 'm'. Expected [-1,4], got [2,5]"),
        ([raw("a", "FP32", (8,), 32)], "unexpected shape for input 'a' for model 'm'. Expected [-1,4], got [8]"),
        ([raw("a", "FP32", (2, 4), 40)], "input byte size mismatch for input 'a' for model 'm'. Expected 32, got 40"),
        ([raw("a", "FP32", (2, 4), 0)], "input byte size mismatch for input 'a' for model 'm'. Expected 32, got 0"),
        (
            [InputTensor("a", "FP32", (1, 4), np.zeros(3, np.float32))],
            "input byte size mismatch for input 'a' for model 'm'. Expected 16, got 12",
        ),
        (
            [GOOD[0], InputTensor("b", "INT8", (2,), np.array([0, 128], np.int32))],
            "input 'b' has elements outside of [-128, 127], the range of INT8",
        ),
    ],
)
def test_bad_inputs_have_the_texts_that_clients_know(tensors: list[InputTensor], text: str) -> None:
    with pytest.raises(Invalid) as refused:
        bind(tensors, TWO, "m")
    assert refused.value.message == text


@pytest.mark.parametrize(
    "shape",
    [
        (16, 2**60 + 2),
        (2**31, 2**31, 2**31),
        (-1, 4),
        (-(2**63), 4),
        (2**62, 4),
        (0, 2**31, 2**31, 2**31),
        (1,) * 9,
        (2**28, 4),
    ],
)
def test_hostile_shapes_are_refused_before_anything_is_allocated(shape: tuple[int, ...]) -> None:
    tracemalloc.start()
    with pytest.raises(Invalid):
        bind([InputTensor("x", "FP32", shape, bytes(128))], signature(DataType.FP32, *([FREE] * len(shape))), "m")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("shape", "data", "text"),
    [
        ((1,), b"", "unexpected number of string elements 0 for inference input 'x', expecting 1"),
        ((2**30,), bytes(64), f"unexpected number of string elements 16 for inference input 'x', expecting {2**30}"),
        ((1,), b"\5\0\0\0ab", "inputs['x']: BYTES element 0 runs over the end"),
        ((1,), b"\xff\xff\xff\xffab", "inputs['x']: BYTES element 0 runs over the end"),
        ((1,), b"\1\0\0\0abc", "inputs['x']: 2 bytes are left after 1 BYTES elements"),
    ],
)
def test_lying_bytes_elements(shape: tuple[int, ...], data: bytes, text: str) -> None:
    with pytest.raises(Invalid) as refused:
        bind([InputTensor("x", "BYTES", shape, data)], signature(DataType.BYTES, FREE), "m")
    assert refused.value.message == text


def test_bool_bytes_other_than_one_are_true() -> None:
    bound = bind([InputTensor("x", "BOOL", (3,), b"\0\1\xff")], signature(DataType.BOOL, FREE), "m")
    assert bound["x"].view(np.uint8).tolist() == [0, 1, 1]


def test_bf16_is_widened() -> None:
    bound = bind([InputTensor("x", "BF16", (2,), b"\x80\x3f\x00\xc0")], signature(DataType.BF16, FREE), "m")
    assert bound["x"].tolist() == [1.0, -2.0]


def test_typed_elements_take_the_models_type() -> None:
    bound = bind([InputTensor("x", "INT8", (2,), np.array([-128, 127], np.int32))], signature(DataType.INT8, FREE), "m")
    assert bound["x"].dtype == np.int8
    assert bound["x"].tolist() == [-128, 127]


def test_scalars_and_models_that_tell_no_shape() -> None:
    for shape, size in [((), 4), ((3,), 12), ((2, 2), 16)]:
        bound = bind([InputTensor("x", "FP32", shape, bytes(size))], signature(DataType.FP32), "m")
        assert bound["x"].shape == shape


def test_number_of_tensors_is_bounded() -> None:
    with pytest.raises(Invalid, match="at most 256 inputs"):
        bind([GOOD[0]] * (MAX_TENSORS + 1), TWO, "m")
    with pytest.raises(Invalid, match="at most 256 outputs"):
        wanted(["y"] * (MAX_TENSORS + 1), TWO, "m")


def test_outputs() -> None:
    assert wanted([], TWO, "m") == ("y", "z")
    assert wanted(["z", "y"], TWO, "m") == ["z", "y"]
    with pytest.raises(Invalid) as doubled:
        wanted(["y", "y"], TWO, "m")
    assert doubled.value.message == "output 'y' already exists in request"
    with pytest.raises(Invalid) as unknown:
        wanted(["q"], TWO, "m")
    assert unknown.value.message == "unexpected inference output 'q' for model 'm'"


def test_long_names_of_strangers_are_cut() -> None:
    with pytest.raises(Invalid) as refused:
        bind([raw("x" * 10_000, "FP32", (1,), 4)], TWO, "m")
    assert len(refused.value.message) < 300
