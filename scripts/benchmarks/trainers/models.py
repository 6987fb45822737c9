"""The models, their first values and their data: the same for every system, made of numpy alone."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

SEED = 7
POOL = 4
"""Different batches of a worker; it goes through them again and again."""
TOUCHED = 0.01
"""Part of the embedding's rows that a step touches."""
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))
"""Width and stride of each stage of the residual network."""


@dataclass(frozen=True, slots=True)
class Model:
    """What is trained."""

    text: str
    kind: str
    tensors: tuple[tuple[int, ...], ...]
    batch: int
    rate: float
    """Learning rate of plain SGD."""
    steps: int
    """Steps that are timed unless told otherwise: a multiple of ten."""

    @property
    def bytes(self) -> int:
        """Of all parameters, as float32."""
        return 4 * sum(math.prod(shape) for shape in self.tensors)


def _mlp(*widths: int) -> tuple[tuple[int, ...], ...]:
    pairs = itertools.pairwise(widths)
    return tuple(shape for narrow, wide in pairs for shape in ((wide, narrow), (wide,)))


def _resnet() -> tuple[tuple[int, ...], ...]:
    def convolution(inward: int, width: int, size: int) -> list[tuple[int, ...]]:
        return [(width, inward, size, size), (width,), (width,)]

    shapes = convolution(3, 64, 3)
    inward = 64
    for width, _ in STAGES:
        for _ in range(2):
            shapes += convolution(inward, width, 3) + convolution(width, width, 3)
            if inward != width:
                shapes += convolution(inward, width, 1)
            inward = width
    return (*shapes, (10, 512), (10,))


MODELS = {
    "S": Model("MLP of 0.2 M parameters", "mlp", _mlp(784, 256, 10), 32, 0.05, 200),
    "M": Model("ResNet-18 for 32x32 images, 11 M parameters in 62 tensors", "resnet", _resnet(), 4, 0.001, 10),
    "L": Model("MLP of 25 M parameters in 6 tensors", "mlp", _mlp(1024, 4096, 4096, 1024), 32, 0.01, 20),
    "T": Model("200 tensors of 16 KiB", "vector", ((4096,),) * 200, 1, 0.01, 100),
    "T1": Model("one tensor as large as those of T", "vector", ((200 * 4096,),), 1, 0.01, 100),
    "E": Model("embedding of 1 M x 64, 1 % of the rows a step", "embedding", ((1_000_000, 64),), 10_000, 100.0, 10),
}


def first_values(model: Model) -> list[np.ndarray]:
    """The parameters that every system begins with."""
    random = np.random.default_rng(SEED)
    values = []
    for shape in model.tensors:
        if model.kind == "embedding":
            some = random.standard_normal((1000, shape[1]), np.float32)
            values.append(np.tile(some, (shape[0] // 1000, 1)))
        elif len(shape) > 1:
            scale = math.sqrt(2 / math.prod(shape[1:]))
            values.append(scale * random.standard_normal(shape, np.float32))
        else:
            # In a residual network the first of two vectors scales, the second shifts.
            scales = model.kind == "resnet" and values and values[-1].ndim > 1 and shape != (10,)
            values.append(np.full(shape, 1 if scales else 0, np.float32))
    return values


def batches(model: Model, rank: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """A worker's data: inputs and targets of each batch."""
    random = np.random.default_rng([SEED, rank])
    return [_batch(model, random) for _ in range(POOL)]


def _batch(model: Model, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if model.kind == "embedding":
        rows, width = model.tensors[0]
        touched = random.choice(rows, int(TOUCHED * rows), replace=False)
        return random.standard_normal((len(touched), width), np.float32), touched.astype(np.int64)
    if model.kind == "vector":
        return random.standard_normal(model.bytes // 4, np.float32), np.zeros(1, np.int64)
    classes = model.tensors[-1][0]
    shape = (3, 32, 32) if model.kind == "resnet" else (model.tensors[0][1],)
    x = random.standard_normal((model.batch, *shape), np.float32)
    return x, random.integers(0, classes, model.batch)


def loss(ops: Any, model: Model, values: list[Any], x: Any, y: Any) -> Any:
    """The loss of one batch, in the operations of any framework."""
    given = iter(values)
    if model.kind == "vector":
        return ops.half_squares(ops.concatenate(values) - x)
    if model.kind == "embedding":
        return ops.half_squares(ops.rows(values[0], y) - x) / model.batch
    if model.kind == "mlp":
        layers = len(values) // 2
        for layer in range(layers):
            x = ops.dense(x, next(given), next(given))
            if layer < layers - 1:
                x = ops.relu(x)
    else:
        x = _residual(ops, given, x)
    return ops.cross_entropy(x, y)


def _residual(ops: Any, given: Iterator[Any], x: Any) -> Any:
    """He et al. 2016, with the 3x3 first layer that is usual for small images; batch statistics alone."""

    def convolution(x: Any, stride: int) -> Any:
        return ops.normalize(ops.convolve(x, next(given), stride), next(given), next(given))

    x = ops.relu(convolution(x, 1))
    inward = 64
    for width, stride in STAGES:
        for block in range(2):
            step = stride if block == 0 else 1
            inner = convolution(ops.relu(convolution(x, step)), 1)
            x = ops.relu(inner + (convolution(x, step) if inward != width else x))
            inward = width
    return ops.dense(ops.mean_of_places(x), next(given), next(given))
