"""A residual goes where its worker goes, and nowhere else."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support import gradients
from tidemill.compression import catalogue
from tidemill.compression.residuals import Residuals
from tidemill.errors import DataLoss
from tidemill.tensors.blocks import Array, Block

ELEMENTS = 10_000


def cut(size: int) -> list[Block]:
    """The flat vector in blocks of this size."""
    return [Block(i, offset, min(size, ELEMENTS - offset)) for i, offset in enumerate(range(0, ELEMENTS, size))]


def step(residuals: Residuals, number: int, size: int = 4096) -> bytes:
    """What a worker sends for all blocks."""
    codec, flat = catalogue.make("topk"), gradients.of(ELEMENTS, number)
    return b"".join(codec.encode(flat[b.slice], residuals.of(b)) for b in cut(size))


def test_survives_a_checkpoint(tmp_path: Path) -> None:
    whole = Residuals(ELEMENTS)
    sent = [step(whole, number) for number in range(10)]
    first = Residuals(ELEMENTS)
    halves = [step(first, number) for number in range(5)]
    save_file({"residual": first.save()}, tmp_path / "worker.safetensors")
    second = Residuals(ELEMENTS)
    second.restore(load_file(tmp_path / "worker.safetensors")["residual"])
    halves += [step(second, number) for number in range(5, 10)]
    assert halves == sent
    np.testing.assert_array_equal(second.save(), whole.save())


def test_what_was_saved_does_not_change_later() -> None:
    residuals = Residuals(ELEMENTS)
    step(residuals, 0)
    saved = residuals.save()
    kept = saved.copy()
    step(residuals, 1)
    np.testing.assert_array_equal(saved, kept)
    other = Residuals(ELEMENTS)
    other.restore(saved)
    step(other, 1)
    np.testing.assert_array_equal(saved, kept)


def test_goes_on_where_the_vector_is_cut_otherwise() -> None:
    residuals = Residuals(ELEMENTS)
    step(residuals, 0, size=4096)
    other = Residuals(ELEMENTS)
    other.restore(residuals.save())
    np.testing.assert_array_equal(np.concatenate([other.of(block) for block in cut(1000)]), residuals.save())


def test_is_dropped_only_when_told() -> None:
    residuals = Residuals(ELEMENTS)
    before = step(residuals, 0)
    assert residuals.save().any()
    residuals.drop()
    assert not residuals.save().any()
    assert step(residuals, 0) == before


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros(ELEMENTS - 1, "<f4"),
        np.zeros(ELEMENTS, "<f8"),
        np.zeros((ELEMENTS, 1), "<f4"),
        np.full(ELEMENTS, np.nan, "<f4"),
        np.full(ELEMENTS, -np.inf, "<f4"),
    ],
    ids=["short", "double", "matrix", "nan", "infinity"],
)
def test_does_not_restore_what_is_no_residual_of_the_model(wrong: Array) -> None:
    residuals = Residuals(ELEMENTS)
    step(residuals, 0)
    before = residuals.save()
    with pytest.raises(DataLoss) as refusal:
        residuals.restore(wrong)
    assert refusal.value.reason == "BAD_CHECKPOINT"
    np.testing.assert_array_equal(residuals.save(), before)
