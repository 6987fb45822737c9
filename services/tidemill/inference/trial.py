"""Whether batches pay for a model, which is tried when it is loaded."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tidemill.errors import TidemillError
from tidemill.inference.calls import Array
from tidemill.inference.configuration import Configuration, DynamicBatching
from tidemill.inference.modelconfig.complete import tracked
from tidemill.inference.runtimes.base import Runtime
from tidemill.inference.signatures import FREE, TensorSpec
from tidemill.tensors.dtypes import DataType

WORTH = 100e-6
"""Seconds that a row must be faster in a batch than alone: about what it costs to put a call together with others."""
_LONGEST = 0.1
"""Seconds of one run beyond which nothing is tried: it would hold up the load."""
_TIME = 0.05
_RUNS = 10
_LARGEST = 1 << 24
"""Elements that the inputs of a batch may have together."""


def with_batches(
    runtime: Runtime, configuration: Configuration, clock: Callable[[], float] = time.perf_counter
) -> Configuration:
    """The configuration of a warm model that says nothing of batches: with them, where they pay and change no answer.

    They pay where a row is faster by `WORTH` in a batch of the largest size than alone. They change no answer where
    each of some rows of random numbers gives alone what it gives in a batch, but for the last digits.

    Args:
        runtime: the model.
        configuration: complete.
        clock: tells the time in seconds.
    """
    rows = configuration.max_batch
    specs = runtime.signature.inputs
    if not specs or any(not _can_be_tried(spec) for spec in specs):
        return configuration
    if rows * sum(math.prod(spec.shape[1:]) for spec in specs) > _LARGEST:
        return configuration
    numbers = np.random.default_rng(0)
    batch = {spec.name: _some(spec, rows, numbers) for spec in specs}
    single = {name: array[:1] for name, array in batch.items()}
    outputs = runtime.signature.output_names
    try:
        alone = _least(lambda: runtime.run(single, outputs), clock)
        if alone > _LONGEST or alone < WORTH:
            return configuration
        together = _least(lambda: runtime.run(batch, outputs), clock)
        if alone - together / rows < WORTH:
            return configuration
        whole = runtime.run(batch, outputs)
        each = [runtime.run({n: a[row : row + 1] for n, a in batch.items()}, outputs) for row in range(rows)]
    except TidemillError:  # what it runs with is not known here
        return configuration
    if not all(
        _same(all_rows, rows_alone) for all_rows, rows_alone in zip(whole, zip(*each, strict=True), strict=True)
    ):
        return configuration
    found = replace(configuration, dynamic=DynamicBatching())
    return replace(found, tracked=tracked(found))


def _can_be_tried(spec: TensorSpec) -> bool:
    return spec.datatype is not DataType.BYTES and FREE not in spec.shape[1:]


def _some(spec: TensorSpec, rows: int, numbers: np.random.Generator) -> Array:
    """Random rows: what is no fraction may be a position in a table, so it is 0 or 1."""
    shape = (rows, *spec.shape[1:])
    if spec.datatype.numpy.kind == "f":
        return numbers.standard_normal(shape).astype(spec.datatype.numpy)
    return numbers.integers(0, 2, shape).astype(spec.datatype.numpy)


def _least(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of the fastest of some runs: the others were disturbed."""
    begun = before = clock()
    least = math.inf
    for _ in range(_RUNS):
        run()
        now = clock()
        least, before = min(least, now - before), now
        if now - begun > _TIME:
            break
    return least


def _same(whole: Array, each: Sequence[Array]) -> bool:
    """Whether an output has one row for each of the input, the same as alone."""
    if whole.shape[:1] != (len(each),) or any(one.shape != (1, *whole.shape[1:]) for one in each):
        return False
    alone = np.concatenate(each)
    if whole.dtype.kind != "f":
        return bool(np.array_equal(whole, alone))
    return bool(np.allclose(whole, alone, rtol=1e-3, atol=1e-5, equal_nan=True))
