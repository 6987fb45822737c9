"""The batch dimension of requests, and inputs that may be left out."""

import numpy as np
import pytest

from tidemill.errors import Invalid
from tidemill.inference.inputs import InputTensor, bind, rows_of
from tidemill.inference.signatures import Signature, TensorSpec
from tidemill.tensors.dtypes import DataType


def arrays(**rows: int) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    return {name: np.zeros((size, 2), np.float32) for name, size in rows.items()}


def test_rows() -> None:
    assert rows_of(arrays(a=3, b=3), 4, "m") == 3
    assert rows_of(arrays(a=3, b=5), 0, "m") == 1
    assert rows_of({}, 4, "m") == 1


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ({"a": 5}, "inference request batch-size must be <= 4 for 'm'"),
        ({"a": 0}, "inference request batch-size must be >= 1 for 'm'"),
        ({"a": 2, "b": 3}, "input 'b' batch size does not match other inputs for 'm'"),
    ],
)
def test_rows_that_the_model_does_not_take(rows: dict[str, int], text: str) -> None:
    with pytest.raises(Invalid) as refused:
        rows_of(arrays(**rows), 4, "m")
    assert refused.value.message == text


SPECS = Signature(tuple(TensorSpec(name, DataType.INT8, (1,)) for name in "abc"), ())


def given(*names: str) -> list[InputTensor]:
    return [InputTensor(name, "INT8", (1,), b"\1") for name in names]


def test_optional_inputs_may_be_left_out() -> None:
    assert list(bind(given("a"), SPECS, "m", {"a"})) == ["a"]
    assert list(bind(given("b", "a"), SPECS, "m", {"a"})) == ["b", "a"]
    with pytest.raises(Invalid) as refused:
        bind(given("c"), SPECS, "m", {"a"})
    assert refused.value.message == (
        "expected number of inputs between 1 and 3 but got 1 inputs for model 'm'. Got input(s) ['c'], but missing "
        "required input(s) ['a']. Please provide all required input(s)."
    )


class Lies:
    """Says that it has so many bytes, and must not be asked for them."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size

    def read(self) -> bytes:
        raise AssertionError


@pytest.mark.parametrize("size", [0, 2, 2**40])
def test_what_lies_elsewhere_is_fetched_only_when_its_size_is_right(size: int) -> None:
    tensor = InputTensor("a", "INT8", (1,), Lies(size))
    with pytest.raises(Invalid, match=f"input byte size mismatch for input 'a' for model 'm'. Expected 1, got {size}"):
        bind([tensor], SPECS, "m", {"a"})
