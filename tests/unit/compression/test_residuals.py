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


def push(residuals: Residuals, number: int, most: int = 99) -> bytes:
    """One step of a worker, which is killed before it has encoded more than `most` blocks."""
    codec, flat = catalogue.make("topk"), gradients.of(ELEMENTS, number)
    residuals.begin()
    sent = b"".join(codec.encode(flat[b.slice], residuals.next(b)) for b in cut(4096)[:most])
    if most >= len(cut(4096)):
        residuals.finish(number)
    return sent


@pytest.mark.parametrize(("most", "step"), [(0, 5), (1, 5), (99, 5), (99, 6)])
def test_a_file_outlives_a_worker_that_is_killed_at_any_time(tmp_path: Path, most: int, step: int) -> None:
    """Its successor goes on before the step in which that was, or after it, if all shards have that."""
    alone = Residuals(ELEMENTS)
    sent = [push(alone, number) for number in range(10)]
    first = Residuals(ELEMENTS, tmp_path / "residual")
    assert first.is_kept
    assert first.resume(0)
    assert [push(first, number) for number in range(5)] == sent[:5]
    push(first, 5, most)
    second = Residuals(ELEMENTS, tmp_path / "residual")
    assert second.resume(step)
    assert [push(second, number) for number in range(step, 10)] == sent[step:]
    np.testing.assert_array_equal(second.save(), alone.save())


def test_what_belongs_to_later_steps_is_dropped(tmp_path: Path) -> None:
    first = Residuals(ELEMENTS, tmp_path / "residual")
    for number in range(5):
        push(first, number)
    second = Residuals(ELEMENTS, tmp_path / "residual")
    assert not second.resume(3)
    assert not second.save().any()
    assert second.resume(3)
    assert Residuals(ELEMENTS, tmp_path / "residual").resume(0), "nothing was sent before the first step"
    assert not Residuals(ELEMENTS, tmp_path / "elsewhere").resume(3)


def test_a_step_is_taken_back() -> None:
    residuals = Residuals(ELEMENTS)
    push(residuals, 0)
    before = residuals.save()
    push(residuals, 1)
    residuals.undo()
    np.testing.assert_array_equal(residuals.save(), before)


@pytest.mark.parametrize("found", [b"", b"x" * 5000, bytes(4096 + 8 * ELEMENTS)], ids=["empty", "short", "zeros"])
def test_a_file_of_another_kind_is_begun_anew(tmp_path: Path, found: bytes) -> None:
    (tmp_path / "residual").write_bytes(found)
    residuals = Residuals(ELEMENTS, tmp_path / "residual")
    assert residuals.is_kept
    assert not residuals.save().any()
    assert not Residuals(ELEMENTS + 1, tmp_path / "residual").save().any()


def test_without_room_for_a_file_there_is_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    residuals = Residuals(ELEMENTS, tmp_path / "nowhere" / "residual")
    assert not residuals.is_kept
    push(residuals, 0)
    assert residuals.save().any()
    assert "kept in memory alone: No such file" in caplog.text


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
