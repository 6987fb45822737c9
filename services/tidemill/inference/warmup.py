"""A first run on zeros, so that no caller waits for what a runtime does once, and a model that cannot run is found."""

import math

import numpy as np

from tidemill.errors import Internal, Invalid
from tidemill.inference.calls import Array
from tidemill.inference.runtimes.base import Runtime
from tidemill.inference.signatures import FREE, TensorSpec
from tidemill.tensors.dtypes import DataType

SIZES = (1, 32, 224)
"""What is tried for free dimensions, one size after the other; the first dimension, usually the batch, is always 1."""
_LARGEST = 2**24
"""Elements that inputs of a larger size than the first may have together."""


def warm_up(runtime: Runtime) -> str:
    """Run the model once; "" when it ran, or else why no size could be found that it runs with.

    Raises:
        Invalid: it does not run, although its signature leaves nothing open but the first dimensions.
    """
    specs, names = runtime.signature.inputs, runtime.signature.output_names
    problem = ""
    for size in SIZES:
        shapes = [_shape(spec, size) for spec in specs]
        if size != SIZES[0] and sum(map(math.prod, shapes)) > _LARGEST:
            break
        try:
            runtime.run({spec.name: _zeros(spec, shape) for spec, shape in zip(specs, shapes, strict=True)}, names)
        except (Invalid, Internal) as error:
            problem = str(error.__cause__ or error)[:400]
            continue
        return ""
    if all(spec.shape and FREE not in spec.shape[1:] for spec in specs):
        raise Invalid(f"the model does not run on zeros of its own signature: {problem}", reason="WARM_UP_FAILED")
    return problem


def _shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    return tuple(
        dimension if dimension != FREE else (size if position else 1) for position, dimension in enumerate(spec.shape)
    )


def _zeros(spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if spec.datatype is DataType.BYTES:
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, spec.datatype.numpy)
