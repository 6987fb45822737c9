"""The best epoch, and when training is over."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill import errors
from tidemill.training.epochs import Epoch, Metrics, append, best, over
from tidemill.training.spec import EarlyStopping, JobSpec


def run(losses: list[float], spec: JobSpec) -> tuple[Epoch, ...]:
    """Epochs with these validation losses, until training is over."""
    epochs: tuple[Epoch, ...] = ()
    for number, loss in enumerate(losses, start=1):
        if epochs and over(epochs, spec):
            break
        epochs = append(epochs, Epoch(epoch=number, validation=Metrics(loss=loss)), spec)
    return epochs


@given(st.lists(st.floats(0, 10), min_size=1, max_size=20), st.integers(0, 4), st.sampled_from([0.0, 0.1, 1.0]))
def test_the_best_epoch_and_the_end_follow_their_definitions(
    losses: list[float], patience: int, min_delta: float
) -> None:
    spec = JobSpec(epochs=len(losses), early_stopping=EarlyStopping(patience=patience, min_delta=min_delta))
    done = run(losses, spec)
    expected, waited = 1, 0
    for number, loss in enumerate(losses, start=1):
        if number > 1:
            improved = loss < losses[expected - 1] - min_delta
            expected, waited = (number, 0) if improved else (expected, waited + 1)
        if (patience and waited >= patience) or number == len(losses):
            assert len(done) == number
            break
    found = best(done)
    assert found is not None
    assert found.epoch == expected
    assert over(done, spec)


def test_epochs_come_in_order_and_finite() -> None:
    spec = JobSpec(epochs=2)
    first = append((), Epoch(epoch=1), spec)
    for number in (0, 1, 3):
        with pytest.raises(errors.OutOfRange):
            append(first, Epoch(epoch=number), spec)
    with pytest.raises(errors.OutOfRange):
        append(append(first, Epoch(epoch=2), spec), Epoch(epoch=3), spec)
    for broken in (Epoch(epoch=2, train_loss=math.nan), Epoch(epoch=2, validation=Metrics(loss=math.inf))):
        with pytest.raises(errors.Invalid):
            append(first, broken, spec)
    assert best(()) is None
