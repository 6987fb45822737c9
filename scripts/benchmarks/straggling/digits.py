"""A small model that learns: softmax regression with one hidden layer on handwritten digits, gradients by hand."""

from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

from tidemill.tensors import blocks
from tidemill.tensors.blocks import Array

SHAPES = ((64, 32), (32,), (32, 10), (10,))
BATCH = 32


@dataclass(frozen=True, slots=True)
class Digits:
    """The data: pixels in [0, 1], and which digit they are."""

    x: Array
    y: Array

    @staticmethod
    def load() -> "Digits":
        """1797 digits of 8 x 8 pixels, in an order of their own."""
        found = load_digits()
        order = np.random.default_rng(0).permutation(len(found.target))
        return Digits((found.data[order] / 16).astype(np.float32), found.target[order])

    def batch(self, worker: int, step: int, seed: int) -> tuple[Array, Array]:
        """What a worker learns from in a step: always the same."""
        rows = np.random.default_rng((seed, worker, step)).integers(0, len(self.y), BATCH)
        return self.x[rows], self.y[rows]


def first_values(seed: int) -> Array:
    """The parameters to begin with, flat."""
    random = np.random.default_rng(seed)
    parts = [
        random.standard_normal(shape) * np.sqrt(2 / shape[0]) if len(shape) > 1 else np.zeros(shape) for shape in SHAPES
    ]
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def loss(flat: Array, x: Array, y: Array) -> float:
    """The mean cross-entropy."""
    _, chances = _forward(flat, x)
    return float(-np.log(np.maximum(chances[np.arange(len(y)), y], 1e-12)).mean())


def gradient(flat: Array, x: Array, y: Array) -> Array:
    """The gradient of `loss`, flat float32."""
    _, _, w2, _ = blocks.views(flat, SHAPES)
    hidden, chances = _forward(flat, x)
    error = chances.copy()
    error[np.arange(len(y)), y] -= 1
    error /= len(y)
    inner = (error @ w2.T) * (hidden > 0)
    parts = (x.T @ inner, inner.sum(0), hidden.T @ error, error.sum(0))
    return np.concatenate([part.ravel() for part in parts]).astype(np.float32)


def _forward(flat: Array, x: Array) -> tuple[Array, Array]:
    w1, b1, w2, b2 = blocks.views(flat, SHAPES)
    hidden = np.maximum(x @ w1 + b1, 0)
    scores = hidden @ w2 + b2
    chances = np.exp(scores - scores.max(1, keepdims=True))
    return hidden, chances / chances.sum(1, keepdims=True)
