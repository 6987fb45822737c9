"""The measures of quality, against those of scikit-learn."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, precision_recall_fscore_support

from tidemill.training.worker.evaluation import cross_entropy
from tidemill.training.worker.metrics import confusion, measure


@given(st.integers(2, 8), st.integers(1, 200), st.integers(0, 2**32), st.integers(1, 8))
@settings(max_examples=150, deadline=None)
def test_they_equal_those_of_scikit_learn(classes: int, samples: int, seed: int, used: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(0, min(used, classes), samples)
    predicted = np.where(random.random(samples) < 0.5, truth, random.integers(0, classes, samples))
    counts = confusion(truth, predicted, classes)
    assert counts.tolist() == confusion_matrix(truth, predicted, labels=range(classes)).tolist()
    found = measure(counts, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = precision_recall_fscore_support(truth, predicted, average="macro", zero_division=0)
    assert (found.precision, found.recall, found.f1) == pytest.approx(wanted[:3], abs=1e-12)
    assert found.accuracy == pytest.approx(accuracy_score(truth, predicted), abs=1e-12)
    assert (found.loss, found.samples) == (0.5, samples)


def test_cross_entropy_equals_that_of_scikit_learn() -> None:
    random = np.random.default_rng(1)
    logits = (random.normal(size=(300, 5)) * 4).astype(np.float32)
    y = random.integers(0, 5, 300)
    wide = np.exp(logits.astype(np.float64))
    wanted = log_loss(y, wide / wide.sum(1, keepdims=True), labels=range(5))
    assert cross_entropy(logits, y).mean() == pytest.approx(wanted, rel=1e-9)


def test_cross_entropy_of_extreme_logits_is_finite() -> None:
    logits = np.array([[1e30, -1e30], [0, 80]], np.float32)
    assert np.isfinite(cross_entropy(logits, np.array([0, 1]))).all()
    assert cross_entropy(logits, np.array([0, 1])).tolist() == [0.0, 0.0]
