"""Streams of blocks, taken whole or not at all."""

import numpy as np
import pytest

from tidemill import errors
from tidemill.parameters.part import Part
from tidemill.parameters.staging import Staging, superseded
from tidemill.tensors.blocks import Block

PART = Part([Block(1, 10, 3), Block(4, 40, 2)])
THREE = np.arange(3, dtype="<f4").tobytes()
TWO = np.arange(10, 12, dtype="<f4").tobytes()


def test_blocks_come_in_any_order_and_lie_in_theirs() -> None:
    staging = Staging(PART, {})
    staging.add(4, TWO)
    staging.add(1, THREE)
    assert staging.whole().tolist() == [0, 1, 2, 10, 11]
    assert staging.whole().flags.writeable


def test_a_part_without_blocks_is_whole_at_once() -> None:
    assert Staging(Part([]), {}).whole().size == 0


def test_what_is_optional_comes_whole_or_not_at_all() -> None:
    staging = Staging(PART, {})
    assert staging.whole(optional=True).size == 0
    staging.add(4, TWO)
    with pytest.raises(errors.Invalid) as early:
        staging.whole(optional=True)
    assert early.value.reason == "MISSING_BLOCKS"


@pytest.mark.parametrize(
    ("index", "data", "reason"),
    [
        (0, THREE, "UNKNOWN_BLOCK"),
        (4, THREE, "SIZE_MISMATCH"),
        (1, b"", "SIZE_MISMATCH"),
        (1, np.array([0, np.nan, 0], "<f4").tobytes(), "NON_FINITE"),
        (1, np.array([0, np.inf, -np.inf], "<f4").tobytes(), "NON_FINITE"),
    ],
)
def test_wrong_blocks_say_whose_they_are(index: int, data: bytes, reason: str) -> None:
    staging = Staging(PART, {"worker": "3", "step": "7"})
    with pytest.raises(errors.Invalid, match="worker 3, step 7, block") as wrong:
        staging.add(index, data)
    assert wrong.value.reason == reason
    assert wrong.value.metadata == {"worker": "3", "step": "7", "block": str(index)}


def test_the_largest_numbers_are_finite() -> None:
    staging = Staging(PART, {})
    staging.add(4, np.array([np.finfo("f4").max] * 2, "<f4").tobytes())


def test_what_was_dropped_takes_nothing_more_and_says_why() -> None:
    staging = Staging(PART, {})
    staging.add(4, TWO)
    staging.drop(superseded)
    with pytest.raises(errors.Stale):
        staging.add(1, THREE)
    with pytest.raises(errors.Stale):
        staging.whole()
