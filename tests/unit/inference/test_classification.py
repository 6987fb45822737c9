"""The greatest values of an output, as strings."""

from typing import Any

import numpy as np
import pytest

from tidemill.errors import Invalid
from tidemill.inference.classification import MAX_CLASSES, classify

SCORES = np.array([[0.1, 0.7, 0.2], [3, -1, 3]], np.float32)


def told(array: Any, count: int, labels: tuple[str, ...] = (), *, batched: bool = True) -> Any:
    return classify(np.asarray(array), count, labels, batched, "y").tolist()


def test_greatest_first_for_each_row_of_a_batch() -> None:
    assert told(SCORES, 2) == [[b"0.700000:1", b"0.200000:2"], [b"3.000000:0", b"3.000000:2"]]


def test_labels_where_there_are_some() -> None:
    assert told(SCORES[:1], 3, ("a", "b", "")) == [[b"0.700000:1:b", b"0.200000:2", b"0.100000:0:a"]]


def test_all_elements_are_one_row_without_a_batch() -> None:
    assert told(SCORES, 2, batched=False) == [b"3.000000:3", b"3.000000:5"]


def test_no_more_classes_than_elements() -> None:
    assert told(SCORES, 99)[0] == [b"0.700000:1", b"0.200000:2", b"0.100000:0"]
    assert classify(np.zeros((2, 0), np.float32), 3, (), True, "y").shape == (2, 0)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int64, np.uint64])
def test_integers_of_any_size(kind: type[Any]) -> None:
    limits = np.iinfo(kind)
    found = told(np.array([[limits.min, limits.max, 5]], kind), 3)
    assert found == [[f"{limits.max}:1".encode(), b"5:2", f"{limits.min}:0".encode()]]


def test_what_is_no_number_comes_last() -> None:
    assert told(np.array([[np.nan, 1, np.inf]], np.float32), 3) == [[b"inf:2", b"1.000000:1", b"nan:0"]]


def test_refuses_what_has_no_order() -> None:
    for array, kind in ((np.zeros(3, bool), "BOOL"), (np.array([b"x"], object), "BYTES")):
        with pytest.raises(
            Invalid, match=f"class result not available for output 'y' due to unsupported type '{kind}'"
        ):
            told(array, 1)


def test_bounds_the_number_of_strings() -> None:
    with pytest.raises(Invalid, match="at most"):
        told(np.zeros((2, MAX_CLASSES), np.int8), MAX_CLASSES)
