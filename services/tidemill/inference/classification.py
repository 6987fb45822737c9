"""Outputs as the classes that have the greatest values: strings `value:index:label`, the greatest first."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from tidemill.errors import Invalid

Array = np.ndarray[Any, Any]

MAX_CLASSES = 1 << 16
"""Most strings in one answer: each is an object."""


def classify(array: Array, count: int, labels: Sequence[str], batched: bool, output: str) -> Array:
    """The `count` greatest elements, of each row of a batch or of all; fewer where there are not as many.

    Of equal elements the first counts as the greater one; what is not a number is the least.

    Args:
        array: numbers, [batch, ...] or of any shape.
        count: at least 1.
        labels: of the classes, by index; those that are missing or empty are left out.
        batched: whether the first dimension is that of the batch.
        output: name of the tensor, for messages.

    Returns:
        An object array of `bytes`, [batch, k] or [k].

    Raises:
        Invalid: the elements are no numbers, or too many classes are asked for.
    """
    if array.dtype.kind not in "iuf":
        kind = "BYTES" if array.dtype.kind == "O" else "BOOL"
        raise Invalid(
            f"class result not available for output '{output}' due to unsupported type '{kind}'",
            reason="NOT_CLASSIFIABLE",
        )
    rows = array.shape[0] if batched and array.ndim else 1
    flat = array.reshape(rows, -1) if array.size else array.reshape(rows, 0)
    count = min(count, flat.shape[1])
    if rows * count > MAX_CLASSES:
        raise Invalid(
            f"output '{output}': at most {MAX_CLASSES} classes are told in an answer, not {rows * count}",
            reason="TOO_MANY_CLASSES",
        )
    found = np.empty((rows, count), dtype=object)
    for index, row in enumerate(flat):
        found[index] = [_told(row[best], int(best), labels) for best in _greatest(row, count)]
    return found if batched else found.reshape(count)


def _greatest(row: Array, count: int) -> Array:
    if row.dtype.kind == "f":
        row = np.where(np.isnan(row), -np.inf, row)
    # Reversed before and after, so that a stable sort leaves equal elements in their order.
    falling: Array = (len(row) - 1 - np.argsort(row[::-1], kind="stable"))[::-1]
    return falling[:count]


def _told(value: Any, index: int, labels: Sequence[str]) -> bytes:
    number = f"{float(value):f}" if value.dtype.kind == "f" else str(int(value))
    label = labels[index] if index < len(labels) else ""
    return (f"{number}:{index}:{label}" if label else f"{number}:{index}").encode()
