"""A first run on zeros, so that no caller waits for what a runtime does once, and a model that cannot run is found."""

import math

import numpy as np

from tidemill.errors import Internal, Invalid
from tidemill.inference.runtimes.base import Array, Runtime
from tidemill.inference.signatures import FREE, TensorSpec
from tidemill.tensors.dtypes import DataType

SIZES = (1, 32, 224)
"""What is tried for free dimensions, one size after the other; the first dimension, usually the batch, is always 1."""
_LARGEST = 2**24


def warm_up(runtime: Runtime) -> None:
    """Run the model once.

    Raises:
        Invalid: it runs with none of the sizes.
    """
    specs, names = runtime.signature.inputs, runtime.signature.output_names
    problem: Exception | None = None
    for size in SIZES:
        shapes = [_shape(spec, size) for spec in specs]
        if size != SIZES[0] and sum(map(math.prod, shapes)) > _LARGEST:
            break
        try:
            runtime.run({spec.name: _zeros(spec, shape) for spec, shape in zip(specs, shapes, strict=True)}, names)
        except (Invalid, Internal) as error:
            problem = error
            continue
        return
    detail = problem.__cause__ or problem if problem else "no outputs"
    raise Invalid(f"the model does not run on zeros of its own signature: {detail}"[:400], reason="WARM_UP_FAILED")


def _shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    return tuple(
        dimension if dimension != FREE else (size if position else 1) for position, dimension in enumerate(spec.shape)
    )


def _zeros(spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if spec.datatype is DataType.BYTES:
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, spec.datatype.numpy)
