"""Quality of a classifier, counted by hand."""

import numpy as np

from tidemill.training.epochs import Metrics
from tidemill.training.samples import Array


def confusion(truth: Array, predicted: Array, classes: int) -> Array:
    """How often class i (row) was taken for class j (column); int64 [classes, classes]."""
    counts = np.bincount(truth * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)


def measure(counts: Array, loss: float) -> Metrics:
    """Accuracy, and precision, recall and F1 as means over the classes.

    Classes that occur neither among the truths nor among the predictions do not count; a class that is never predicted
    has precision 0, one that never occurs has recall 0.

    Args:
        counts: confusion matrix [classes, classes], rows are truths.
        loss: mean cross-entropy, passed through.
    """
    hits = np.diag(counts).astype(np.float64)
    predicted, true = counts.sum(0), counts.sum(1)
    seen = predicted + true > 0
    hits, predicted, true = hits[seen], predicted[seen], true[seen]
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(true, 1)
    f1 = 2 * hits / (predicted + true)
    total = int(counts.sum())
    return Metrics(
        loss=loss,
        accuracy=float(hits.sum() / total),
        precision=float(precision.mean()),
        recall=float(recall.mean()),
        f1=float(f1.mean()),
        samples=total,
    )
