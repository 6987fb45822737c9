"""Measuring a network on samples it was not trained on."""

import numpy as np

from tidemill.training.epochs import Metrics
from tidemill.training.samples import Array, Samples
from tidemill.training.worker.metrics import confusion, measure
from tidemill.training.worker.network import Network
from tidemill.training.worker.stop import Stop

BATCH = 512


def evaluate(network: Network, samples: Samples, stop: Stop) -> Metrics:
    """Quality of the network on `samples`.

    Raises:
        Stopped: the worker is to end.
    """
    classes = network.plan.classes
    counts = np.zeros((classes, classes), np.int64)
    loss = 0.0
    for start in range(0, len(samples), BATCH):
        stop.check()
        logits = network.logits(samples.x[start : start + BATCH])
        y = samples.y[start : start + BATCH]
        counts += confusion(y, logits.argmax(1), classes)
        loss += float(cross_entropy(logits, y).sum())
    return measure(counts, loss / len(samples))


def cross_entropy(logits: Array, y: Array) -> Array:
    """Cross-entropy of each sample, float64 [N], from logits [N, classes] and classes [N]."""
    wide = logits.astype(np.float64)
    highest = wide.max(1, keepdims=True)
    out: Array = np.log(np.exp(wide - highest).sum(1)) + highest[:, 0] - wide[np.arange(len(y)), y]
    return out
